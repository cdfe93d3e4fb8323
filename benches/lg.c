/* Load generator for the benches: one server, and clients that print one JSON line.
 *
 *   lg server PORT
 *   lg MODE HOST PORT CLIENTS SECONDS [SIZE]
 *
 * A connection begins with one byte that tells the server its role:
 *   'S'  sink: count what arrives; at end of stream answer the count (8 bytes), so lost bytes are seen
 *   'G'  generator: send until the client goes away
 *   'E'  echo: send everything back, the role byte too (the client then knows that the whole path stands)
 *
 * Modes, each with CLIENTS threads and one connection a thread unless told otherwise:
 *   up, down  bulk towards, from the server
 *   pp        ping-pong of SIZE bytes (64), as fast as answers come; the first 50 round trips are warm-up
 *   pq        paced ping-pong, one a millisecond; time counts from when a message was due, so stalls show; SIGTERM ends it
 *   cps       connect, one byte there and back, close; again and again, at least once
 *   idle      CLIENTS connections from one thread, opened and then left alone until a line arrives on stdin
 *   slow      CLIENTS connections from one thread that are sent bulk and read 4 KiB of it every 10 ms, until SIGTERM
 *
 * Copies and wake-ups are kept few so that the agents in the middle, not this program, set the result.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (256 * 1024)
/* MSG_TRUNC on TCP discards in the kernel: the receiver pays no copy, so more than a buffer can go at once. */
#define DISCARD (1 << 20)
#define WARM_UP 50

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int would_block(ssize_t r) { return r < 0 && (errno == EAGAIN || errno == EINTR); }

/* ---- server ---- */

struct peer {
    int fd;
    char role; /* 0 until the first byte came */
    uint64_t received;
};

static char scratch[BUFFER];

static void watch(int epoll, int op, int fd, uint32_t events, struct peer *peer) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    epoll_ctl(epoll, op, fd, &event);
}

/* Each step returns 0 when the connection is over. */
static int step_hello(int epoll, struct peer *p) {
    ssize_t r = recv(p->fd, &p->role, 1, 0);
    if (r != 1) return would_block(r);
    if (p->role == 'G') watch(epoll, EPOLL_CTL_MOD, p->fd, EPOLLIN | EPOLLOUT, p);
    if (p->role == 'E') return send(p->fd, &p->role, 1, MSG_NOSIGNAL) == 1;
    return p->role == 'G' || p->role == 'S';
}

static int step_sink(struct peer *p) {
    ssize_t r = recv(p->fd, scratch, DISCARD, MSG_TRUNC);
    if (r > 0) p->received += r;
    if (r == 0) send(p->fd, &p->received, sizeof p->received, MSG_NOSIGNAL);
    return r > 0 || would_block(r);
}

static int step_echo(struct peer *p) {
    ssize_t r = recv(p->fd, scratch, BUFFER, 0);
    if (r <= 0) return would_block(r);
    return send(p->fd, scratch, r, MSG_NOSIGNAL) == r;
}

static int step_generate(struct peer *p, uint32_t events) {
    if (events & EPOLLIN) {
        ssize_t r = recv(p->fd, scratch, BUFFER, 0);
        if (r <= 0 && !would_block(r)) return 0;
    }
    ssize_t r = send(p->fd, scratch, BUFFER, MSG_NOSIGNAL);
    return r > 0 || would_block(r);
}

static int step(int epoll, struct peer *p, uint32_t events) {
    switch (p->role) {
    case 0: return step_hello(epoll, p);
    case 'S': return step_sink(p);
    case 'E': return step_echo(p);
    default: return step_generate(p, events);
    }
}

static void accept_all(int epoll, int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct peer *p = calloc(1, sizeof *p);
        no_delay(fd);
        p->fd = fd;
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, p);
    }
}

static int serve(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&any, sizeof any) || listen(listener, 4096)) {
        perror("lg: bind");
        return 1;
    }
    int epoll = epoll_create1(0);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (!p) {
                accept_all(epoll, listener);
            } else if (!step(epoll, p, events[i].events)) {
                close(p->fd);
                free(p);
            }
        }
    }
}

/* ---- clients ---- */

static struct sockaddr_in target;
static double seconds;
static volatile sig_atomic_t finished;
static int size = 64;

struct client {
    pthread_t thread;
    uint64_t bytes, failures, samples, room;
    double *latency; /* one per round trip or connection, in seconds */
    double elapsed;
};

static void record(struct client *c, double latency) {
    if (c->samples == c->room) {
        c->room = c->room ? c->room * 2 : 4096;
        c->latency = realloc(c->latency, c->room * sizeof *c->latency);
    }
    c->latency[c->samples++] = latency;
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&target, sizeof target)) {
        close(fd);
        return -1;
    }
    no_delay(fd);
    return fd;
}

/* Connects in the given role; for an echo connection it returns only when the first byte came back. */
static int dial_as(char role) {
    int fd = dial();
    if (fd < 0) return -1;
    char answer;
    if (send(fd, &role, 1, MSG_NOSIGNAL) == 1 && (role != 'E' || recv(fd, &answer, 1, 0) == 1)) return fd;
    close(fd);
    return -1;
}

static void *up(void *arg) {
    struct client *c = arg;
    char *data = calloc(1, BUFFER);
    double start = now();
    int fd = dial_as('S');
    uint64_t sent = 0, counted = 0;
    while (fd >= 0 && now() - start < seconds) {
        ssize_t r = send(fd, data, BUFFER, MSG_NOSIGNAL);
        if (r < 0) break;
        sent += r;
    }
    shutdown(fd, SHUT_WR);
    if (fd < 0 || recv(fd, &counted, sizeof counted, MSG_WAITALL) != sizeof counted || counted != sent) c->failures++;
    c->bytes = counted;
    c->elapsed = now() - start;
    close(fd);
    free(data);
    return NULL;
}

static void *down(void *arg) {
    struct client *c = arg;
    char *data = malloc(BUFFER);
    double start = now();
    int fd = dial_as('G');
    while (now() - start < seconds) {
        ssize_t r = recv(fd, data, DISCARD, MSG_TRUNC);
        if (r <= 0) {
            c->failures++;
            break;
        }
        c->bytes += r;
    }
    c->elapsed = now() - start;
    close(fd);
    free(data);
    return NULL;
}

static void finish(int number) {
    (void)number;
    finished = 1;
}

static int round_trip(int fd, char *data) {
    if (send(fd, data, size, MSG_NOSIGNAL) != size) return 0;
    return recv(fd, data, size, MSG_WAITALL) == size;
}

static void ping_pong(struct client *c, double interval) {
    char *data = calloc(1, size);
    int fd = dial_as('E');
    double start = now(), due = start;
    for (uint64_t k = 0; !finished && now() - start < seconds; k++) {
        double from = now();
        if (interval > 0) {
            due += interval;
            if (due > from) {
                struct timespec pause = {0, (long)((due - from) * 1e9)};
                nanosleep(&pause, NULL);
                if (finished) break;
            }
            from = due;
        }
        if (!round_trip(fd, data)) {
            c->failures++;
            break;
        }
        if (k >= WARM_UP) record(c, now() - from);
    }
    c->elapsed = now() - start;
    close(fd);
    free(data);
}

static void *fast_ping_pong(void *arg) {
    ping_pong(arg, 0);
    return NULL;
}

static void *paced_ping_pong(void *arg) {
    ping_pong(arg, 0.001);
    return NULL;
}

static void *connect_again_and_again(void *arg) {
    struct client *c = arg;
    double start = now();
    do {
        double from = now();
        int fd = dial_as('E');
        if (fd < 0) {
            c->failures++;
            continue;
        }
        record(c, now() - from);
        close(fd);
    } while (now() - start < seconds);
    c->elapsed = now() - start;
    return NULL;
}

static int idle(int wanted) {
    int failures = 0;
    for (int i = 0; i < wanted; i++) failures += dial_as('E') < 0;
    printf("{\"ready\":%d,\"failures\":%d}\n", wanted - failures, failures);
    fflush(stdout);
    getchar();
    return 0;
}

/* A ready line as from idle, once the server has something for every connection; the readers never catch up. */
static int slow(int wanted) {
    char data[4096];
    int failures = 0, *fds = calloc(wanted, sizeof *fds);
    for (int i = 0; i < wanted; i++) failures += (fds[i] = dial_as('G')) < 0 || recv(fds[i], data, 1, 0) != 1;
    printf("{\"ready\":%d,\"failures\":%d}\n", wanted - failures, failures);
    fflush(stdout);
    struct timespec pause = {0, 10000000};
    while (!finished) {
        for (int i = 0; i < wanted; i++)
            if (recv(fds[i], data, sizeof data, MSG_DONTWAIT) == 0) return 1;
        nanosleep(&pause, NULL);
    }
    return 0;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile_us(const double *sorted, uint64_t n, double q) { return n ? sorted[(uint64_t)((n - 1) * q)] * 1e6 : 0; }

/* Joins the clients' samples and prints the one line that the benches read. */
static void report(const struct client *clients, int n) {
    struct client all = {0};
    for (int i = 0; i < n; i++) {
        all.bytes += clients[i].bytes;
        all.failures += clients[i].failures;
        if (clients[i].elapsed > all.elapsed) all.elapsed = clients[i].elapsed;
        for (uint64_t k = 0; k < clients[i].samples; k++) record(&all, clients[i].latency[k]);
    }
    qsort(all.latency, all.samples, sizeof *all.latency, ascending);
    printf("{\"bytes\":%llu,\"elapsed\":%.6f,\"failures\":%llu,\"samples\":%llu,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f}\n",
           (unsigned long long)all.bytes, all.elapsed, (unsigned long long)all.failures, (unsigned long long)all.samples,
           quantile_us(all.latency, all.samples, 0.5), quantile_us(all.latency, all.samples, 0.99),
           quantile_us(all.latency, all.samples, 0.999), quantile_us(all.latency, all.samples, 1));
}

static void *(*mode_named(const char *name))(void *) {
    if (!strcmp(name, "up")) return up;
    if (!strcmp(name, "down")) return down;
    if (!strcmp(name, "pp")) return fast_ping_pong;
    if (!strcmp(name, "pq")) return paced_ping_pong;
    if (!strcmp(name, "cps")) return connect_again_and_again;
    return NULL;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && !strcmp(argv[1], "server")) return serve(atoi(argv[2]));
    if (argc < 6) {
        fprintf(stderr, "usage: lg server PORT | lg up|down|pp|pq|cps|idle|slow HOST PORT CLIENTS SECONDS [SIZE]\n");
        return 2;
    }
    target.sin_family = AF_INET;
    target.sin_port = htons(atoi(argv[3]));
    inet_pton(AF_INET, argv[2], &target.sin_addr);
    int n = atoi(argv[4]);
    seconds = atof(argv[5]);
    if (argc > 6) size = atoi(argv[6]);
    if (!strcmp(argv[1], "idle")) return idle(n);
    if (!strcmp(argv[1], "slow")) return signal(SIGTERM, finish), slow(n);
    void *(*mode)(void *) = mode_named(argv[1]);
    if (!mode) return 2;
    if (mode == paced_ping_pong) signal(SIGTERM, finish);
    struct client *clients = calloc(n, sizeof *clients);
    for (int i = 0; i < n; i++) pthread_create(&clients[i].thread, NULL, mode, &clients[i]);
    for (int i = 0; i < n; i++) pthread_join(clients[i].thread, NULL);
    report(clients, n);
    return 0;
}
