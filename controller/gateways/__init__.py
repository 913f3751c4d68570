"""Gateways: processes of their own that know only the north port."""
