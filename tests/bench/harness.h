/*
 * harness.h - what all benchmark programs share: options, loopback connections to a peer process, clock, report.
 * Nothing here knows KCM.
 */
#ifndef BENCH_HARNESS_H
#define BENCH_HARNESS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire.h"

struct options {
	const char *mode;      /* -m  which of the program's ways to do it */
	size_t size;           /* -s  bytes a message, length word included */
	size_t batch_bytes;    /* -b  bytes the source hands to one write */
	int conns;             /* -c  TCP connections */
	int sockets;           /* -k  KCM sockets */
	int threads;           /* -t  receiving threads */
	unsigned duration_ms;  /* -d  how long the sending side sends */
	int segment_bytes;     /* -g  TCP segments are a multiple of this, and Nagle stays on: see aligned_segments; 0: off */
	uint16_t port;         /* -p  where the peer connects to */
};

/* Parses the options above; prints what is wrong and exits with 2 otherwise. */
struct options parse_options(int argc, char **argv, const char *default_mode);

/* Ends the program with `what` and errno. */
void die(const char *what) __attribute__((noreturn));

double now_seconds(void);

/* RLIMIT_NOFILE up to the hard limit, and beyond it where the user may. Returns what holds now. */
size_t raise_fd_limit(void);

/*
 * Where connections come in: the address BENCH_ADDRESS, or loopback. With BENCH_PEER_STACK the peer keeps the preloaded
 * library and has this as its KCMSHIM_STACK.
 */

/* The other side of the connections: a process of its own, else never under a preloaded library. */
struct peer {
	pid_t pid;
	int report_fd; /* what the peer writes to its standard output */
};

/*
 * Kernel KCM runs the parser at the start of the TCP buffer, not of the message, so its figures are only true where
 * every buffer starts with a message. This makes TCP cut at multiples of `bytes`: the MSS is one, and without
 * TCP_NODELAY the sender does not fill an odd window remainder. Call it before listen and connect.
 */
void aligned_segments(int fd, int bytes);

/*
 * Listens on a free loopback port, starts `program` (beside this one) with `role` as its mode and the options, and
 * accepts opt->conns connections into `fds`. TCP_NODELAY is set on all of them, except with -g.
 */
struct peer connect_peer(const char *argv0, const char *program, const char *role, const struct options *opt, int *fds);

/* The half of connect_peer for peers that bring their own transport: starts `program`, accepts nothing. */
struct peer start_peer(const char *argv0, const char *program, const char *role, const struct options *opt);

/* Reads the tally a sink reports at its end. */
struct tally read_report(const struct peer *peer);

/* Waits for the peer to end; a peer that failed ends this program too. */
void reap_peer(const struct peer *peer);

/* The peer's half: opt->conns connections to opt->port. */
void connect_all(const struct options *opt, int *fds);

/* Writes all of it, or dies. */
void write_all(int fd, const void *data, size_t len);

/* Processor time of this process so far, all threads, user and system. */
double cpu_seconds(void);

/*
 * One JSON line with the rate and the processor time a message took in this process; returns the exit status, 1 when
 * the tally is not complete.
 */
int report_rate(const struct tally *tally, unsigned conns, double seconds);

#endif
