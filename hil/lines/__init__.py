"""Reference lines: each a folder with plant, register list, line.yaml and recipes."""
