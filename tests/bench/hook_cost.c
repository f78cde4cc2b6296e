/*
 * hook_cost.c - what a preloaded library adds to a call on a descriptor it does not own.
 *
 * `-m CALL` is made through the program's own symbol, which the library may have taken, and through glibc's own, looked
 * up in glibc itself, in alternated blocks of one process: the difference of the medians is the hook. Without a library
 * it is zero. `-m CALL+kcm`: the process holds a KCM socket as well.
 */
#define _GNU_SOURCE
#include "kcm_user.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#define BLOCKS 400
#define CALLS_PER_BLOCK 500

/* The cheapest call of each kind that reaches the kernel and does nothing there. */
static int null_fd, spare_fd, pair[2], epfd;

#define LOOP(call)                                                                                                     \
	for (int i = 0; i < CALLS_PER_BLOCK; i++)                                                                      \
		(void)!(call)

#define CASES(X)                                                                                                       \
	X(read, (null_fd, buffer, 1))                                                                                  \
	X(write, (null_fd, buffer, 1))                                                                                 \
	X(writev, (null_fd, &iovec, 1))                                                                                \
	X(recv, (pair[0], buffer, 1, MSG_DONTWAIT))                                                                    \
	X(send, (pair[0], buffer, 0, MSG_OOB))                                                                         \
	X(recvmsg, (pair[0], &message, MSG_DONTWAIT))                                                                  \
	X(setsockopt, (pair[0], SOL_SOCKET, SO_PRIORITY, &zero, sizeof zero))                                          \
	X(poll, (&poll_fd, 1, 0))                                                                                      \
	X(epoll_wait, (epfd, &event, 1, 0))                                                                            \
	X(fcntl, (null_fd, F_GETFD, 0))                                                                                \
	X(ioctl, (null_fd, FIONBIO, &zero))                                                                            \
	X(fstat, (null_fd, &status))                                                                                   \
	X(dup2, (null_fd, spare_fd))                                                                                   \
	X(close, (-1))

/* What the calls above take besides descriptors. */
#define ARGUMENTS                                                                                                      \
	char buffer[8] = { 0 };                                                                                        \
	struct iovec iovec = { buffer, sizeof buffer };                                                                \
	struct msghdr message = { .msg_iov = &iovec, .msg_iovlen = 1 };                                                \
	struct pollfd poll_fd = { .fd = pair[0], .events = POLLIN };                                                   \
	struct epoll_event event;                                                                                      \
	struct stat status;                                                                                            \
	int zero = 0;                                                                                                  \
	(void)message, (void)poll_fd, (void)event, (void)status, (void)zero

/* One function for each call and symbol, so that neither loop has a branch the other lacks. */
#define DEFINE(name, arguments)                                                                                        \
	static void *glibc_##name;                                                                                     \
	static void through_glibc_##name(void)                                                                         \
	{                                                                                                              \
		ARGUMENTS;                                                                                             \
		__typeof__(name) *volatile own = (__typeof__(name) *)glibc_##name;                                     \
		LOOP(own arguments);                                                                                   \
	}                                                                                                              \
	static void through_symbol_##name(void)                                                                        \
	{                                                                                                              \
		ARGUMENTS;                                                                                             \
		__typeof__(name) *volatile taken = name;                                                               \
		LOOP(taken arguments);                                                                                 \
	}
CASES(DEFINE)

static const struct {
	const char *name;
	void **glibc;
	void (*bare)(void), (*hooked)(void);
} calls[] = {
#define ROW(name, arguments) { #name, &glibc_##name, through_glibc_##name, through_symbol_##name },
	CASES(ROW)
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double nanos_a_call(void (*loop)(void))
{
	struct timespec before, after;

	clock_gettime(CLOCK_MONOTONIC, &before);
	loop();
	clock_gettime(CLOCK_MONOTONIC, &after);
	return ((double)(after.tv_sec - before.tv_sec) * 1e9 + (double)(after.tv_nsec - before.tv_nsec)) / CALLS_PER_BLOCK;
}

static double median(double *figures)
{
	qsort(figures, BLOCKS, sizeof *figures, by_value);
	return figures[BLOCKS / 2];
}

int main(int argc, char **argv)
{
	static double bare[BLOCKS], hooked[BLOCKS];
	struct options opt = parse_options(argc, argv, "read");
	void *glibc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
	size_t name_len = strcspn(opt.mode, "+");
	struct epoll_event event = { .events = EPOLLIN };

	null_fd = open("/dev/null", O_RDWR);
	spare_fd = dup(null_fd);
	epfd = epoll_create1(0);
	if (!glibc || null_fd < 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0 ||
	    epoll_ctl(epfd, EPOLL_CTL_ADD, pair[0], &event) < 0)
		die("set-up");
	if (opt.mode[name_len] == '+')
		kcm_open();
	for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
		if (strlen(calls[i].name) != name_len || strncmp(calls[i].name, opt.mode, name_len) != 0)
			continue;
		*calls[i].glibc = dlsym(glibc, calls[i].name);
		if (!*calls[i].glibc)
			die("dlsym");
		for (int block = 0; block < BLOCKS; block++) {
			bare[block] = nanos_a_call(calls[i].bare);
			hooked[block] = nanos_a_call(calls[i].hooked);
		}
		double bare_ns = median(bare), over_ns = median(hooked) - bare_ns;

		printf("{\"bare_ns\": %.2f, \"over_ns\": %.2f}\n", bare_ns, over_ns);
		return 0;
	}
	fprintf(stderr, "no such call: %s\n", opt.mode);
	return 2;
}
