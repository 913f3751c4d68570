/* The classic client to compare with: libmodbus, synchronous, one request at a time.
 *
 *   modbus_client PORT
 *
 * Every line "N" of standard input reads 125 holding registers from 0 on N times, and is answered with
 * "CPU_NS WALL_NS CHANGES": processor time of this process, time on the clock, and how many answers differed in their
 * first register from the one before. Ends with its standard input.
 */
#include <errno.h>
#include <modbus.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(int argc, char **argv)
{
    char line[32];
    uint16_t registers[125], last = 0;
    modbus_t *context = argc == 2 ? modbus_new_tcp("127.0.0.1", atoi(argv[1])) : NULL;

    if (!context || modbus_connect(context)) {
        fprintf(stderr, "modbus_client: %s\n", modbus_strerror(errno));
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        long count = strtol(line, NULL, 10), changes = 0;
        int64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
        for (long i = 0; i < count; i++) {
            if (modbus_read_registers(context, 0, 125, registers) != 125) {
                fprintf(stderr, "modbus_client: %s\n", modbus_strerror(errno));
                return 1;
            }
            changes += registers[0] != last;
            last = registers[0];
        }
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        wall = now(CLOCK_MONOTONIC) - wall;
        printf("%lld %lld %ld\n", (long long)cpu, (long long)wall, changes);
        fflush(stdout);
    }
    modbus_close(context);
    modbus_free(context);
    return 0;
}
