/* harness.c - see harness.h. */
#define _GNU_SOURCE
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LISTEN_BACKLOG 4096
#define ARG_BYTES_MAX 32
#define TCP_MAXSEG_MAX 32767   /* what the option accepts */
#define TCP_TIMESTAMP_BYTES 12 /* of each segment, counted in the option but not available to data */
#define FDS_WANTED 65536 /* 10 000 connections, as many KCM sockets, and whatever a library keeps beside them */

extern char **environ;

void die(const char *what)
{
	perror(what);
	exit(1);
}

double now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

size_t raise_fd_limit(void)
{
	struct rlimit limit = { FDS_WANTED, FDS_WANTED };

	if (setrlimit(RLIMIT_NOFILE, &limit) < 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	getrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_cur;
}

struct options parse_options(int argc, char **argv, const char *default_mode)
{
	struct options opt = {
		.mode = default_mode, .size = 64, .batch_bytes = 65536,
		.conns = 1, .sockets = 1, .threads = 1, .duration_ms = 300,
	};
	int letter;

	while ((letter = getopt(argc, argv, "m:s:b:c:k:t:d:g:p:")) != -1) {
		switch (letter) {
		case 'm': opt.mode = optarg; break;
		case 's': opt.size = strtoul(optarg, NULL, 10); break;
		case 'b': opt.batch_bytes = strtoul(optarg, NULL, 10); break;
		case 'c': opt.conns = atoi(optarg); break;
		case 'k': opt.sockets = atoi(optarg); break;
		case 't': opt.threads = atoi(optarg); break;
		case 'd': opt.duration_ms = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'g': opt.segment_bytes = atoi(optarg); break;
		case 'p': opt.port = (uint16_t)atoi(optarg); break;
		default: exit(2);
		}
	}
	if (opt.size < WIRE_MSG_MIN_BYTES || opt.size > WIRE_MSG_MAX_BYTES || opt.batch_bytes < opt.size ||
	    opt.conns < 1 || opt.sockets < 1 || opt.threads < 1) {
		fprintf(stderr, "%s: an option is out of range\n", argv[0]);
		exit(2);
	}
	return opt;
}

/*
 * The environment without LD_PRELOAD: the peer stands for a machine that has never heard of the library. Or with it, and
 * a stack of its own.
 */
static char **environment_of_peer(void)
{
	const char *stack = getenv("BENCH_PEER_STACK");
	const char *without = stack ? "KCMSHIM_STACK=" : "LD_PRELOAD=";
	size_t count = 0, kept = 0;
	char **copy;

	while (environ[count])
		count++;
	copy = calloc(count + 2, sizeof *copy);
	if (!copy)
		die("calloc");
	for (size_t i = 0; i < count; i++)
		if (strncmp(environ[i], without, strlen(without)) != 0)
			copy[kept++] = environ[i];
	if (stack && asprintf(&copy[kept], "KCMSHIM_STACK=%s", stack) < 0)
		die("asprintf");
	return copy;
}

static struct sockaddr_in bench_address(uint16_t port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	const char *given = getenv("BENCH_ADDRESS");

	if (given && inet_pton(AF_INET, given, &at.sin_addr) != 1)
		die(given);
	return at;
}

struct peer start_peer(const char *argv0, const char *program, const char *role, const struct options *opt)
{
	char self[PATH_MAX], path[PATH_MAX + 64], numbers[6][ARG_BYTES_MAX];
	posix_spawn_file_actions_t actions;
	char **environment = environment_of_peer();
	struct peer peer;
	int report[2], error;

	snprintf(self, sizeof self, "%s", argv0);
	snprintf(path, sizeof path, "%s/%s", dirname(self), program);
	snprintf(numbers[0], ARG_BYTES_MAX, "%zu", opt->size);
	snprintf(numbers[1], ARG_BYTES_MAX, "%zu", opt->batch_bytes);
	snprintf(numbers[2], ARG_BYTES_MAX, "%d", opt->conns);
	snprintf(numbers[3], ARG_BYTES_MAX, "%u", opt->duration_ms);
	snprintf(numbers[4], ARG_BYTES_MAX, "%d", opt->segment_bytes);
	snprintf(numbers[5], ARG_BYTES_MAX, "%u", (unsigned)opt->port);
	char *const argv[] = { path, "-m", (char *)role, "-s", numbers[0], "-b", numbers[1], "-c", numbers[2],
			       "-d", numbers[3], "-g", numbers[4], "-p", numbers[5], NULL };

	if (pipe(report) < 0)
		die("pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, report[1], STDOUT_FILENO);
	posix_spawn_file_actions_addclose(&actions, report[0]);
	posix_spawn_file_actions_addclose(&actions, report[1]);
	error = posix_spawn(&peer.pid, path, &actions, NULL, argv, environment);
	if (error) {
		errno = error;
		die(path);
	}
	posix_spawn_file_actions_destroy(&actions);
	free(environment);
	close(report[1]);
	peer.report_fd = report[0];
	return peer;
}

void aligned_segments(int fd, int bytes)
{
	int mss;

	if (bytes == 0)
		return;
	mss = TCP_MAXSEG_MAX - TCP_TIMESTAMP_BYTES;
	mss = mss / bytes * bytes + TCP_TIMESTAMP_BYTES;
	if (setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &mss, sizeof mss) < 0)
		die("TCP_MAXSEG");
}

static void set_no_delay(int fd, const struct options *opt)
{
	int on = 1;

	if (opt->segment_bytes == 0 && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
		die("TCP_NODELAY");
}

struct peer connect_peer(const char *argv0, const char *program, const char *role, const struct options *opt, int *fds)
{
	struct sockaddr_in any_port = bench_address(0);
	socklen_t addr_len = sizeof any_port;
	struct options with_port = *opt;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct peer peer;

	aligned_segments(listener, opt->segment_bytes);
	if (listener < 0 || bind(listener, (struct sockaddr *)&any_port, addr_len) < 0 ||
	    listen(listener, LISTEN_BACKLOG) < 0 || getsockname(listener, (struct sockaddr *)&any_port, &addr_len) < 0)
		die("listener");
	with_port.port = ntohs(any_port.sin_port);
	peer = start_peer(argv0, program, role, &with_port);
	for (int i = 0; i < opt->conns; i++) {
		fds[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fds[i] < 0)
			die("accept");
		set_no_delay(fds[i], opt);
	}
	close(listener);
	return peer;
}

void connect_all(const struct options *opt, int *fds)
{
	struct sockaddr_in to = bench_address(opt->port);

	for (int i = 0; i < opt->conns; i++) {
		fds[i] = socket(AF_INET, SOCK_STREAM, 0);
		aligned_segments(fds[i], opt->segment_bytes);
		if (fds[i] < 0 || connect(fds[i], (struct sockaddr *)&to, sizeof to) < 0)
			die("connect");
		set_no_delay(fds[i], opt);
	}
}

void write_all(int fd, const void *data, size_t len)
{
	const char *at = data;

	while (len > 0) {
		ssize_t n = write(fd, at, len);

		if (n < 0)
			die("write");
		at += n;
		len -= (size_t)n;
	}
}

struct tally read_report(const struct peer *peer)
{
	struct tally tally;
	size_t have = 0;

	while (have < sizeof tally) {
		ssize_t n = read(peer->report_fd, (char *)&tally + have, sizeof tally - have);

		if (n <= 0)
			die("the peer ended without a report");
		have += (size_t)n;
	}
	return tally;
}

void reap_peer(const struct peer *peer)
{
	int status;

	if (waitpid(peer->pid, &status, 0) < 0)
		die("waitpid");
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		fprintf(stderr, "the peer failed: status %#x\n", (unsigned)status);
		exit(1);
	}
}

double cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

int report_rate(const struct tally *tally, unsigned conns, double seconds)
{
	int complete = tally_is_complete(tally, conns);

	printf("{\"rate\": %.1f, \"messages\": %llu, \"seconds\": %.6f, \"cpu_ns\": %.2f, \"complete\": %s}\n",
	       (double)tally->count / seconds, (unsigned long long)tally->count, seconds,
	       cpu_seconds() * 1e9 / (double)tally->count, complete ? "true" : "false");
	if (!complete)
		fprintf(stderr, "got %llu of %llu messages, %u faults, %u of %u connections ended\n",
			(unsigned long long)tally->count, (unsigned long long)tally->expected_count, tally->faults,
			tally->ends, conns);
	return complete ? 0 : 1;
}
