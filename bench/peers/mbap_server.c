/* A Modbus TCP server that is never the bottleneck: one thread, epoll, all waiting requests answered in one send.
 *
 *   mbap_server IMAGES
 *
 * IMAGES holds one or more images of a device's memory, one behind the other: 8192 bytes of coils and 8192 of discrete
 * inputs (the first one in bit 0 of the first byte), 131072 bytes of input registers and 131072 of holding registers
 * (high byte first). Each address range that is read shows the next image every time it is read, so that a
 * client that reads the same request again finds other values. Any unit is answered.
 *
 * Listens on 127.0.0.1, prints "port N" and ends when its standard input does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BITS = 8192, WORDS = 131072, IMAGE = 2 * BITS + 2 * WORDS };
enum { IN_SIZE = 65536, LARGEST = 260, OUT_SIZE = IN_SIZE / 8 * LARGEST };

struct connection {
    int fd, stalled;
    size_t in_used, out_used, out_sent;
    uint8_t in[IN_SIZE], out[OUT_SIZE];
};

static const uint8_t *images;
static unsigned image_count;
static uint8_t turn[5][65536];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void read_bits(const uint8_t *area, unsigned offset, unsigned count, uint8_t *out)
{
    memset(out, 0, (count + 7) / 8);
    for (unsigned i = 0; i < count; i++)
        if (area[(offset + i) / 8] >> (offset + i) % 8 & 1)
            out[i / 8] |= (uint8_t)(1u << i % 8);
}

/* The answer PDU to a request PDU; its length. */
static size_t answer(const uint8_t *pdu, size_t size, uint8_t *out)
{
    unsigned function = pdu[0], offset = 0, count = 0, most = function <= 2 ? 2000 : 125;

    if (function < 1 || function > 4) {
        out[0] = (uint8_t)(function | 0x80), out[1] = 1;
        return 2;
    }
    if (size == 5)
        offset = (unsigned)pdu[1] << 8 | pdu[2], count = (unsigned)pdu[3] << 8 | pdu[4];
    if (count < 1 || count > most || offset + count > 65536) {
        out[0] = (uint8_t)(function | 0x80), out[1] = count < 1 || count > most ? 3 : 2;
        return 2;
    }
    const uint8_t *image = images + (size_t)(turn[function][offset]++ % image_count) * IMAGE;
    out[0] = (uint8_t)function;
    if (function <= 2) {
        out[1] = (uint8_t)((count + 7) / 8);
        read_bits(image + (function - 1) * BITS, offset, count, out + 2);
    } else {
        out[1] = (uint8_t)(count * 2);
        memcpy(out + 2, image + 2 * BITS + (function == 4 ? 0 : WORDS) + offset * 2, count * 2);
    }
    return 2u + out[1];
}

/* Answer every whole request that is there. 0 when the peer does not speak Modbus. */
static int serve(struct connection *c)
{
    size_t at = 0;

    while (c->in_used - at >= 8) {
        const uint8_t *frame = c->in + at;
        size_t length = (size_t)frame[4] << 8 | frame[5];
        if (frame[2] || frame[3] || length < 2 || length > 254)
            return 0;
        if (c->in_used - at < 6 + length)
            break;
        uint8_t *reply = c->out + c->out_used;
        size_t size = 1 + answer(frame + 7, length - 1, reply + 7);
        memcpy(reply, frame, 4);
        reply[4] = (uint8_t)(size >> 8), reply[5] = (uint8_t)size, reply[6] = frame[6];
        c->out_used += 6 + size;
        at += 6 + length;
    }
    memmove(c->in, c->in + at, c->in_used - at);
    c->in_used -= at;
    return 1;
}

/* Send what waits. 0 when the connection is over, 1 when something is left, 2 when nothing is. */
static int flush(struct connection *c)
{
    while (c->out_sent < c->out_used) {
        ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_used - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0)
            return errno == EAGAIN;
        c->out_sent += (size_t)sent;
    }
    c->out_used = c->out_sent = 0;
    return 2;
}

static int step(struct connection *c, int epoll)
{
    /* While answers wait, nothing more is read: the client's window closes, as with any device. What one recv brings
     * always has room in out. */
    if (c->out_used == 0) {
        ssize_t got = recv(c->fd, c->in + c->in_used, IN_SIZE - c->in_used, MSG_DONTWAIT);
        if (got <= 0)
            return got < 0 && errno == EAGAIN;
        c->in_used += (size_t)got;
        if (!serve(c))
            return 0;
    }
    int state = flush(c), stalled = state == 1;
    if (stalled != c->stalled) {
        struct epoll_event event = {.events = stalled ? EPOLLOUT : EPOLLIN, .data.ptr = c};
        c->stalled = stalled;
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    }
    return state != 0;
}

static int listen_on_loopback(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 512))
        die("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void accept_one(int listener, int epoll)
{
    struct connection *c = calloc(1, sizeof *c);
    int on = 1;
    if (!c)
        die("calloc");
    c->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (c->fd < 0) {
        free(c);
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl");
}

int main(int argc, char **argv)
{
    struct stat info;
    int file = argc == 2 ? open(argv[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &info) || info.st_size < IMAGE || info.st_size % IMAGE) {
        fprintf(stderr, "usage: mbap_server IMAGES (a multiple of %d bytes)\n", IMAGE);
        return 2;
    }
    images = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (images == MAP_FAILED)
        die("mmap");
    image_count = (unsigned)(info.st_size / IMAGE);

    int listener = listen_on_loopback(), epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = &listener}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &watch);
    watch.data.ptr = NULL; /* standard input */
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &watch))
        die("standard input must be a pipe");
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == NULL)
                return 0;
            if (events[i].data.ptr == &listener) {
                accept_one(listener, epoll);
                continue;
            }
            struct connection *c = events[i].data.ptr;
            if (!step(c, epoll)) {
                close(c->fd);
                free(c);
            }
        }
    }
}
