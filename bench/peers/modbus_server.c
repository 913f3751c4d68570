/* A Modbus device made of libmodbus, for tests.
 *
 *   modbus_server tcp UNIT...          listens on 127.0.0.1 and prints "port N"
 *   modbus_server rtu DEVICE UNIT      serves a serial line, 19200 8N1, and prints "ready"
 *
 * Every unit has 2048 addresses in each area. On TCP a unit that is not there is answered with exception 0x0B,
 * as a gateway does. Standard input takes commands, one a line, each answered with a line:
 *
 *   set UNIT AREA ADDRESS KIND VALUE   "ok"
 *   get UNIT AREA ADDRESS KIND         the value
 *   refuse UNIT CODE                   "ok"; from now on exception CODE, 0 for none
 *
 * AREA is co, di, ir or hr. KIND is bit, or u16, s16, u32, s32, f32, u64, s64, f64 with the order of the bytes behind it
 * (f32-cdab; abcd when nothing is said). libmodbus' own float functions are not used: those of 3.1.6 set one order
 * and get another. A command that is none is answered with "error". Ends with its input.
 */
#include <errno.h>
#include <inttypes.h>
#include <modbus.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SIZE = 2048, MAX_UNITS = 32, MAX_FD = 64 };

static struct unit {
    int number, refusal;
    modbus_mapping_t *map;
} units[MAX_UNITS];
static int unit_count;

static void die(const char *what)
{
    fprintf(stderr, "modbus_server: %s: %s\n", what, modbus_strerror(errno));
    exit(1);
}

static void add_unit(const char *text)
{
    struct unit *unit = &units[unit_count++];
    unit->number = atoi(text);
    unit->map = modbus_mapping_new(SIZE, SIZE, SIZE, SIZE);
    if (!unit->map)
        die("memory");
}

static struct unit *find_unit(int number)
{
    for (int i = 0; i < unit_count; i++)
        if (units[i].number == number)
            return &units[i];
    return NULL;
}

/* What KIND says: u, s or f; the bits; whether the words come last first; whether the bytes of a word are swapped. */
struct kind {
    char letter;
    int bits, reversed, swapped;
};

static int parse_kind(const char *text, struct kind *kind)
{
    char order[5] = "abcd";
    int fields = sscanf(text, "%c%d-%4s", &kind->letter, &kind->bits, order);
    int known = !strcmp(order, "abcd") || !strcmp(order, "cdab") || !strcmp(order, "badc") || !strcmp(order, "dcba");
    kind->reversed = *order == 'c' || *order == 'd';
    kind->swapped = *order == 'b' || *order == 'd';
    int size = kind->bits == 32 || kind->bits == 64 || (kind->bits == 16 && kind->letter != 'f');
    return fields >= 2 && known && size && strchr("usf", kind->letter);
}

static void put(uint16_t *r, const struct kind *kind, uint64_t value)
{
    int words = kind->bits / 16;
    for (int i = 0; i < words; i++) {
        uint16_t word = (uint16_t)(value >> 16 * (kind->reversed ? i : words - 1 - i));
        r[i] = kind->swapped ? (uint16_t)(word << 8 | word >> 8) : word;
    }
}

static uint64_t take(const uint16_t *r, const struct kind *kind)
{
    uint64_t value = 0;
    int words = kind->bits / 16;
    for (int i = 0; i < words; i++) {
        uint16_t word = r[kind->reversed ? words - 1 - i : i];
        value = value << 16 | (kind->swapped ? (uint16_t)(word << 8 | word >> 8) : word);
    }
    return value;
}

static void set_registers(uint16_t *r, const struct kind *kind, const char *text)
{
    float single = strtof(text, NULL);
    double number = strtod(text, NULL);
    uint64_t bits = 0;
    uint32_t half = 0;

    memcpy(&half, &single, sizeof half);
    memcpy(&bits, &number, sizeof bits);
    if (kind->letter != 'f')
        bits = kind->letter == 'u' ? strtoull(text, NULL, 10) : (uint64_t)strtoll(text, NULL, 10);
    else if (kind->bits == 32)
        bits = half;
    put(r, kind, bits);
}

static void print_registers(const uint16_t *r, const struct kind *kind)
{
    uint64_t value = take(r, kind);
    uint32_t half = (uint32_t)value;
    float single;
    double number;

    memcpy(&single, &half, sizeof single);
    memcpy(&number, &value, sizeof number);
    if (kind->letter == 'u')
        printf("%" PRIu64 "\n", value);
    else if (kind->letter == 's')
        printf("%" PRId64 "\n", (int64_t)(value << (64 - kind->bits)) >> (64 - kind->bits));
    else
        printf("%.17g\n", kind->bits == 32 ? (double)single : number);
}

/* One command; 0 when it is none. */
static int command(const char *line)
{
    char verb[8], area[4], kind[16], value[64] = "";
    int number = 0, address = 0, code = 0;

    if (sscanf(line, "refuse %d %d", &number, &code) == 2 && find_unit(number)) {
        find_unit(number)->refusal = code;
        puts("ok");
        return 1;
    }
    int fields = sscanf(line, "%7s %d %3s %d %15s %63s", verb, &number, area, &address, kind, value);
    struct unit *unit = find_unit(number);
    if (fields < 5 || !unit || address < 0 || address > SIZE - 4)
        return 0;
    int set = !strcmp(verb, "set") && fields == 6;
    if (!set && strcmp(verb, "get"))
        return 0;
    if (!strcmp(kind, "bit")) {
        uint8_t *bit = (strcmp(area, "co") ? unit->map->tab_input_bits : unit->map->tab_bits) + address;
        if (set)
            *bit = atoi(value) != 0;
        printf(set ? "ok\n" : "%d\n", *bit);
        return 1;
    }
    uint16_t *r = (strcmp(area, "hr") ? unit->map->tab_input_registers : unit->map->tab_registers) + address;
    struct kind parsed;
    if (!parse_kind(kind, &parsed))
        return 0;
    if (set) {
        set_registers(r, &parsed, value);
        puts("ok");
    } else
        print_registers(r, &parsed);
    return 1;
}

static void reply(modbus_t *context, const uint8_t *request, int size, int header)
{
    struct unit *unit = find_unit(request[header - 1]);
    if (!unit || unit->refusal)
        modbus_reply_exception(context, request, unit ? (unsigned)unit->refusal : 0x0B);
    else
        modbus_reply(context, request, size, unit->map);
}

static int listen_on_loopback(modbus_t *context)
{
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    int fd = modbus_tcp_listen(context, 8);
    if (fd < 0 || getsockname(fd, (struct sockaddr *)&address, &size))
        die("listen");
    printf("port %d\n", ntohs(address.sin_port));
    return fd;
}

static void serve(modbus_t *context, int listener, int serial)
{
    uint8_t request[MODBUS_TCP_MAX_ADU_LENGTH];
    fd_set open, ready;

    FD_ZERO(&open);
    FD_SET(0, &open);
    FD_SET(serial >= 0 ? serial : listener, &open);
    for (;;) {
        fflush(stdout);
        ready = open;
        if (select(MAX_FD, &ready, NULL, NULL, NULL) < 0)
            die("select");
        for (int fd = 1; fd < MAX_FD; fd++) {
            if (!FD_ISSET(fd, &ready))
                continue;
            if (fd == listener) {
                int peer = modbus_tcp_accept(context, &listener);
                if (peer >= MAX_FD)
                    close(peer);
                else if (peer >= 0)
                    FD_SET(peer, &open);
                continue;
            }
            modbus_set_socket(context, fd);
            int size = modbus_receive(context, request);
            if (size > 0)
                reply(context, request, size, modbus_get_header_length(context));
            else if (size < 0 && fd != serial) {
                close(fd);
                FD_CLR(fd, &open);
            }
        }
        if (FD_ISSET(0, &ready)) {
            char line[128];
            if (!fgets(line, sizeof line, stdin))
                return;
            if (!command(line))
                puts("error");
        }
    }
}

int main(int argc, char **argv)
{
    modbus_t *context = NULL;
    int listener = -1, serial = -1;

    setvbuf(stdin, NULL, _IONBF, 0); /* select must see what is left of the input */
    if (argc >= 3 && argc - 2 <= MAX_UNITS && !strcmp(argv[1], "tcp")) {
        for (int i = 2; i < argc; i++)
            add_unit(argv[i]);
        context = modbus_new_tcp("127.0.0.1", 0);
        if (!context)
            die("tcp");
        listener = listen_on_loopback(context);
    } else if (argc == 4 && !strcmp(argv[1], "rtu")) {
        add_unit(argv[3]);
        context = modbus_new_rtu(argv[2], 19200, 'N', 8, 1);
        if (!context || modbus_set_slave(context, atoi(argv[3])) || modbus_connect(context))
            die(argv[2]);
        serial = modbus_get_socket(context);
        puts("ready");
    } else {
        fprintf(stderr, "usage: modbus_server tcp UNIT... | rtu DEVICE UNIT\n");
        return 2;
    }
    serve(context, listener, serial);
    return 0;
}
