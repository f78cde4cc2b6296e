/* Threads that wait in recv on one UDP socket, which is bound to 0.0.0.0 and hence both the kernel's and the
 * stack's: each datagram that comes by the kernel wakes all of them, and those that do not get it wait on for
 * either. Says how many of each kind were received, what recvmsg tells of one of each, and what those see
 * who peek beyond the queue. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"

enum { THREADS = 8, ROUNDS = 1000 };

static int fd;
static int received[256];
static sem_t seen;

static void check(int done, const char *what)
{
	if (!done) {
		printf("%s: %s\n", what, strerrorname_np(errno));
		exit(0);
	}
}

static void *receive(void *unused)
{
	char byte = 0;
	while (byte != 'q') {
		check(recv(fd, &byte, 1, 0) == 1, "recv");
		__atomic_add_fetch(&received[(unsigned char)byte], 1, __ATOMIC_RELAXED);
		sem_post(&seen);
	}
	return unused;
}

static struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	inet_pton(AF_INET, text, &a.sin_addr);
	return a;
}

static void say(int sender, const struct sockaddr_in *to, char what)
{
	check(sendto(sender, &what, 1, 0, (const void *)to, sizeof *to) == 1, "send");
}

/* Sender, length and destination of the next datagram. */
static void tell(void)
{
	char data[2], control[64], text[INET_ADDRSTRLEN], here[INET_ADDRSTRLEN];
	struct sockaddr_in from;
	struct iovec part = { data, sizeof data };
	struct msghdr msg = { &from, sizeof from, &part, 1, control, sizeof control, 0 };
	ssize_t got = recvmsg(fd, &msg, MSG_TRUNC);
	check(got >= 0, "recvmsg");
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	check(c && c->cmsg_type == IP_PKTINFO, "pktinfo");
	struct in_pktinfo *info = (void *)CMSG_DATA(c);
	printf("%zd bytes from %s to %s, flags %#x, control %zu\n", got,
	       inet_ntop(AF_INET, &from.sin_addr, text, sizeof text),
	       inet_ntop(AF_INET, &info->ipi_addr, here, sizeof here), msg.msg_flags, msg.msg_controllen);
}

static long cpu_ms(void)
{
	struct timespec used;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return used.tv_sec * 1000 + used.tv_nsec / 1000000;
}

static void *peek_the_next(void *unused)
{
	char bytes[8] = "";
	ssize_t got = recv(fd, bytes, sizeof bytes, MSG_PEEK);
	printf("peeks %zd %s\n", got, bytes);
	return unused;
}

/* What is queued lies before SO_PEEK_OFF: who peeks sleeps until something else arrives. */
static void peek_beyond(int near)
{
	char bytes[8] = "";
	int at = 0;
	struct timeval brief = { .tv_usec = 500000 }, never = { 0 };
	struct sockaddr_in any = address("0.0.0.0", 7002), loop = address("127.0.0.1", 7002);
	pthread_t thread;
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	check(setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &at, sizeof at) == 0, "SO_PEEK_OFF");
	check(bind(fd, (void *)&any, sizeof any) == 0, "bind");
	check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &brief, sizeof brief) == 0, "SO_RCVTIMEO");
	check(sendto(near, "first", 5, 0, (const void *)&loop, sizeof loop) == 5, "send");
	printf("peeks %zd %s\n", recv(fd, bytes, sizeof bytes, MSG_PEEK), bytes);
	long before = cpu_ms();
	ssize_t got = recv(fd, bytes, sizeof bytes, MSG_PEEK);
	printf("peeks %zd %s\n", got, got < 0 ? strerrorname_np(errno) : bytes);
	printf("sleeps: %d\n", cpu_ms() - before < 100);
	check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &never, sizeof never) == 0, "SO_RCVTIMEO");
	check(pthread_create(&thread, NULL, peek_the_next, NULL) == 0, "thread");
	usleep(20000); /* it sleeps by then, or finds it there */
	check(sendto(near, "second", 6, 0, (const void *)&loop, sizeof loop) == 6, "send");
	pthread_join(thread, NULL);
}

int main(void)
{
	hang_guard("stack_udp_threads");
	sem_init(&seen, 0, 0);
	struct sockaddr_in any = address("0.0.0.0", 7001), stack = address("10.9.0.2", 7001);
	struct sockaddr_in loop = address("127.0.0.1", 7001), from = address("10.9.0.1", 0);
	int on = 1;
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	check(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0, "IP_PKTINFO");
	check(bind(fd, (void *)&any, sizeof any) == 0, "bind");
	int near = socket(AF_INET, SOCK_DGRAM, 0), far = socket(AF_INET, SOCK_DGRAM, 0);
	check(bind(far, (void *)&from, sizeof from) == 0, "bind");
	check(sendto(far, "long", 4, 0, (void *)&stack, sizeof stack) == 4, "send");
	tell();
	check(sendto(near, "long", 4, 0, (void *)&loop, sizeof loop) == 4, "send");
	tell();
	pthread_t threads[THREADS];
	for (int i = 0; i < THREADS; i++)
		check(pthread_create(&threads[i], NULL, receive, NULL) == 0, "thread");
	for (int i = 0; i < ROUNDS; i++) {
		say(near, &loop, 'k');
		sem_wait(&seen);
		say(far, &stack, 's');
		sem_wait(&seen);
	}
	/* Only threads that wait for the stack's too come to their end. */
	for (int i = 0; i < THREADS; i++)
		say(far, &stack, 'q');
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	printf("%d by the kernel, %d by the stack, %d ends\n", received['k'], received['s'], received['q']);
	peek_beyond(near);
	return 0;
}
