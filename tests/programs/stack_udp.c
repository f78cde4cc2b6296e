/*
 * UDP sockets on one address, 10.9.0.2 and fd09::2, against kernel sockets on another, 10.9.0.1 and
 * fd09::1: prints what each call returned. Run once with both addresses the kernel's and once with the
 * first the stack's, it has to print the same.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static union address at(const char *ip, int port)
{
	union address a;
	memset(&a, 0, sizeof a);
	if (strchr(ip, ':')) {
		a.v6.sin6_family = AF_INET6;
		a.v6.sin6_port = htons(port);
		inet_pton(AF_INET6, ip, &a.v6.sin6_addr);
	} else {
		a.v4.sin_family = AF_INET;
		a.v4.sin_port = htons(port);
		inet_pton(AF_INET, ip, &a.v4.sin_addr);
	}
	return a;
}

static socklen_t size(const union address *a)
{
	return a->any.sa_family == AF_INET6 ? sizeof a->v6 : sizeof a->v4;
}

/* The kernel answers itself from the address it was asked at: then one of the two is as good as the other. */
static int either;

static const char *text(const union address *a)
{
	static char out[80];
	char ip[64] = "?";
	int port = 0;
	if (a->any.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &a->v6.sin6_addr, ip, sizeof ip);
		port = ntohs(a->v6.sin6_port);
	} else if (a->any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &a->v4.sin_addr, ip, sizeof ip);
		port = ntohs(a->v4.sin_port);
	}
	if (either && (!strncmp(ip, "10.9.", 5) || !strncmp(ip, "fd09", 4)))
		strcpy(ip, "either");
	snprintf(out, sizeof out, "%s %s", ip, port >= 32768 ? "ephemeral" : port ? "named" : "0");
	return out;
}

/* Prints a call's outcome. */
static long say(const char *what, long result)
{
	if (result < 0)
		printf("%s: %s\n", what, strerrorname_np(errno));
	else
		printf("%s: %ld\n", what, result);
	return result;
}

static int open_at(int family, const char *ip, int port)
{
	int fd = socket(family, SOCK_DGRAM, 0);
	union address a = at(ip, port);
	if (bind(fd, &a.any, size(&a)) < 0)
		say(ip, -1);
	return fd;
}

static void names(const char *what, int fd)
{
	union address a;
	socklen_t length = sizeof a;
	memset(&a, 0, sizeof a);
	if (say(what, getsockname(fd, &a.any, &length)) == 0)
		printf("  %s %u\n", text(&a), length);
	length = sizeof a;
	memset(&a, 0, sizeof a);
	if (say("  peer", getpeername(fd, &a.any, &length)) == 0)
		printf("  %s %u\n", text(&a), length);
}

static void send_to(const char *what, int fd, const char *data, const char *ip, int port)
{
	union address a = at(ip, port);
	say(what, sendto(fd, data, strlen(data), 0, &a.any, size(&a)));
}

static void receive(const char *what, int fd, size_t room, int flags)
{
	char data[64] = "";
	union address a;
	socklen_t length = sizeof a;
	memset(&a, 0, sizeof a);
	long got = say(what, recvfrom(fd, data, room, flags, &a.any, &length));
	if (got >= 0)
		printf("  \"%.*s\" from %s %u\n", (int)room, data, text(&a), length);
}

/* What a receive tells beside the bytes. */
static void receive_told(const char *what, int fd, size_t control_room)
{
	char data[64] = "", control[256];
	struct iovec part = { data, sizeof data - 1 };
	union address a;
	struct msghdr m = { .msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &part, .msg_iovlen = 1,
			    .msg_control = control, .msg_controllen = control_room };
	if (say(what, recvmsg(fd, &m, 0)) < 0)
		return;
	printf("  \"%s\" flags %x name %u control %zu\n", data, m.msg_flags, m.msg_namelen, m.msg_controllen);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		printf("  level %d type %d length %zu", c->cmsg_level, c->cmsg_type, c->cmsg_len);
		char ip[64], other[64];
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO && c->cmsg_len == CMSG_LEN(12)) {
			struct in_pktinfo *i = (void *)CMSG_DATA(c);
			printf(" %s %s interface %d", inet_ntop(AF_INET, &i->ipi_addr, ip, sizeof ip),
			       inet_ntop(AF_INET, &i->ipi_spec_dst, other, sizeof other), i->ipi_ifindex > 0);
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			struct in6_pktinfo *i = (void *)CMSG_DATA(c);
			printf(" %s interface %d", inet_ntop(AF_INET6, &i->ipi6_addr, ip, sizeof ip), i->ipi6_ifindex > 0);
		} else if (c->cmsg_len == CMSG_LEN(4)) {
			printf(" %d", *(int *)CMSG_DATA(c));
		} else if (c->cmsg_len == CMSG_LEN(1)) {
			printf(" %d", *CMSG_DATA(c));
		}
		printf("\n");
	}
}

/* Whether one message tells when a datagram arrived: after it was sent, and before it was asked for. */
static void receive_time(const char *what, int fd, int type, const struct timespec *sent)
{
	char data[8], control[CMSG_SPACE(16)] = "";
	struct iovec part = { data, sizeof data };
	struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct timespec now;
	if (say(what, recvmsg(fd, &m, 0)) < 0)
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != type || c->cmsg_len != CMSG_LEN(16)) {
		printf("  no time, flags %x control %zu\n", m.msg_flags, m.msg_controllen);
		return;
	}
	long long at[2], unit = type == SCM_TIMESTAMP ? 1000 : 1;
	memcpy(at, CMSG_DATA(c), sizeof at);
	long long then = at[0] * 1000000000 + at[1] * unit, after = now.tv_sec * 1000000000LL + now.tv_nsec;
	/* The kernel's clock of frames and the program's are a tick apart. */
	long long before = sent->tv_sec * 1000000000LL + sent->tv_nsec - 20000000;
	printf("  in time %d, in range %d\n", then >= before && then <= after, at[1] >= 0 && at[1] * unit < 1000000000);
}

static void set(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof value) < 0)
		printf("set %d %d: %s\n", level, name, strerrorname_np(errno));
}

static int readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT };
	poll(&p, 1, 0);
	return p.revents;
}

static void await(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };
	poll(&p, 1, -1);
	printf("  poll %x\n", p.revents);
}

/* Sends with a control message of the given payload. */
static void send_told(const char *what, int fd, const char *ip, int port, int level, int type, const void *data, size_t length)
{
	char control[128] = "";
	struct iovec part = { "told", 4 };
	union address a = at(ip, port);
	struct msghdr m = { .msg_name = &a, .msg_namelen = size(&a), .msg_iov = &part, .msg_iovlen = 1,
			    .msg_control = control, .msg_controllen = CMSG_SPACE(length) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = level;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(length);
	memcpy(CMSG_DATA(c), data, length);
	say(what, sendmsg(fd, &m, 0));
}

static void exchange(int family, const char *ours, const char *theirs, int port)
{
	printf("-- exchange %s\n", ours);
	int s = open_at(family, ours, port), k = open_at(family, theirs, port + 1);
	names("names", s);
	receive("nothing yet", s, 20, MSG_DONTWAIT);
	printf("poll %x\n", readable(s));
	send_to("s to k", s, "question", theirs, port + 1);
	receive("k", k, 20, 0);
	send_to("k to s", k, "answer", ours, port);
	await(s, POLLIN);
	int unread = -1;
	say("FIONREAD", ioctl(s, FIONREAD, &unread));
	printf("  %d\n", unread);
	receive("peek", s, 20, MSG_PEEK);
	receive("peek, true length", s, 3, MSG_PEEK | MSG_TRUNC);
	receive("s", s, 20, 0);
	send_to("k to s", k, "cut short", ours, port);
	await(s, POLLIN);
	receive("first three", s, 3, 0);
	receive("the rest is gone", s, 20, MSG_DONTWAIT);
	send_to("empty", k, "", ours, port);
	receive("empty", s, 20, 0);
	send_to("empty", s, "", theirs, port + 1);
	receive("empty", k, 20, 0);

	printf("-- connected\n");
	union address a = at(theirs, port + 1);
	int other = open_at(family, theirs, port + 2);
	say("connect", connect(s, &a.any, size(&a)));
	names("names", s);
	send_to("a stranger", other, "stranger", ours, port);
	send_to("the peer", k, "peer", ours, port);
	receive("only the peer", s, 20, 0);
	say("send", send(s, "to peer", 7, 0));
	say("write", write(s, "written", 7));
	send_to("sendto another", s, "to other", theirs, port + 2);
	receive("k", k, 20, 0);
	receive("k", k, 20, 0);
	receive("other", other, 20, 0);
	a.any.sa_family = AF_UNSPEC;
	say("disconnect", connect(s, &a.any, sizeof a.v4));
	say("send to nobody", send(s, "x", 1, 0));
	send_to("a stranger", other, "stranger", ours, port);
	receive("heard now", s, 20, 0);
	close(s), close(k), close(other);
}

static void told(void)
{
	printf("-- control messages\n");
	int s = open_at(AF_INET, "10.9.0.2", 5000), k = open_at(AF_INET, "10.9.0.1", 5001);
	set(s, IPPROTO_IP, IP_PKTINFO, 1);
	set(s, IPPROTO_IP, IP_RECVTTL, 1);
	set(s, IPPROTO_IP, IP_RECVTOS, 1);
	set(k, IPPROTO_IP, IP_TTL, 33);
	set(k, IPPROTO_IP, IP_TOS, 0x48);
	for (size_t room = 0; room <= 96; room += 12) {
		send_to("k", k, "told", "10.9.0.2", 5000);
		receive_told("s", s, room);
	}
	set(k, IPPROTO_IP, IP_PKTINFO, 1);
	set(k, IPPROTO_IP, IP_RECVTTL, 1);
	set(k, IPPROTO_IP, IP_RECVTOS, 1);
	set(s, IPPROTO_IP, IP_TTL, 44);
	set(s, IPPROTO_IP, IP_TOS, 0x20);
	send_to("s", s, "by option", "10.9.0.1", 5001);
	receive_told("k", k, 128);
	int ttl = 55, bad = 256;
	send_told("IP_TTL", s, "10.9.0.1", 5001, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
	receive_told("k", k, 128);
	send_told("IP_TOS", s, "10.9.0.1", 5001, IPPROTO_IP, IP_TOS, &ttl, sizeof ttl);
	receive_told("k", k, 128);
	send_told("IP_TTL 256", s, "10.9.0.1", 5001, IPPROTO_IP, IP_TTL, &bad, sizeof bad);
	send_told("unknown", s, "10.9.0.1", 5001, IPPROTO_IP, 99, &bad, sizeof bad);
	int w = open_at(AF_INET, "10.9.0.2", 5003);
	struct in_pktinfo from = { 0 };
	inet_pton(AF_INET, "10.9.0.2", &from.ipi_spec_dst);
	send_told("IP_PKTINFO", w, "10.9.0.1", 5001, IPPROTO_IP, IP_PKTINFO, &from, sizeof from);
	receive_told("k", k, 128);
	inet_pton(AF_INET, "192.0.2.77", &from.ipi_spec_dst);
	send_told("another's", w, "10.9.0.1", 5001, IPPROTO_IP, IP_PKTINFO, &from, sizeof from);
	close(s), close(k), close(w);

	s = open_at(AF_INET6, "fd09::2", 5000), k = open_at(AF_INET6, "fd09::1", 5001);
	set(s, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	set(s, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	set(s, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	set(k, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 33);
	set(k, IPPROTO_IPV6, IPV6_TCLASS, 0x48);
	send_to("k", k, "told", "fd09::2", 5000);
	receive_told("s", s, 128);
	set(k, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	set(k, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	send_told("IPV6_HOPLIMIT", s, "fd09::1", 5001, IPPROTO_IPV6, IPV6_HOPLIMIT, &ttl, sizeof ttl);
	receive_told("k", k, 128);
	send_told("IPV6_TCLASS", s, "fd09::1", 5001, IPPROTO_IPV6, IPV6_TCLASS, &ttl, sizeof ttl);
	receive_told("k", k, 128);
	close(s), close(k);
}

static void times(void)
{
	puts("-- times");
	int s = open_at(AF_INET, "10.9.0.2", 5150), k = open_at(AF_INET, "10.9.0.1", 5151);
	static const struct {
		int option, type;
	} kinds[] = { { SO_TIMESTAMP, SCM_TIMESTAMP }, { SO_TIMESTAMPNS, SCM_TIMESTAMPNS } };
	for (size_t i = 0; i < 2; i++) {
		struct timespec sent;
		int on = -1, other = -1;
		socklen_t length = sizeof on;
		set(s, SOL_SOCKET, kinds[i].option, 1);
		getsockopt(s, SOL_SOCKET, kinds[i].option, &on, &length);
		getsockopt(s, SOL_SOCKET, kinds[!i].option, &other, &length);
		printf("on %d other %d\n", on, other);
		clock_gettime(CLOCK_REALTIME, &sent);
		send_to("k to s", k, "when", "10.9.0.2", 5150);
		receive_time("s", s, kinds[i].type, &sent);
	}
	set(s, SOL_SOCKET, SO_TIMESTAMP, 0);
	send_to("k to s", k, "when", "10.9.0.2", 5150);
	receive_told("s", s, 128);
	close(s);
	close(k);
}

static void many(void)
{
	printf("-- many at a time\n");
	int s = open_at(AF_INET, "10.9.0.2", 5000), k = open_at(AF_INET, "10.9.0.1", 5001);
	union address a = at("10.9.0.1", 5001);
	char data[8][16];
	struct iovec parts[8];
	struct mmsghdr m[8];
	memset(m, 0, sizeof m);
	for (int i = 0; i < 8; i++) {
		snprintf(data[i], sizeof data[i], "number %d", i);
		parts[i] = (struct iovec){ data[i], strlen(data[i]) };
		m[i].msg_hdr = (struct msghdr){ .msg_name = &a, .msg_namelen = size(&a), .msg_iov = &parts[i], .msg_iovlen = 1 };
	}
	say("sendmmsg", sendmmsg(s, m, 8, 0));
	for (int i = 0; i < 8; i++)
		receive("k", k, 20, 0);
	for (int i = 0; i < 5; i++)
		send_to("k to s", k, "again", "10.9.0.2", 5000);
	memset(data, 0, sizeof data);
	for (int i = 0; i < 8; i++)
		parts[i].iov_len = sizeof data[i];
	for (int i = 0; i < 8; i++)
		m[i].msg_hdr.msg_name = NULL;
	long got = 0;
	while (got < 5) {
		long n = recvmmsg(s, m, 8, MSG_WAITFORONE, NULL);
		if (n <= 0)
			break;
		for (int i = 0; i < n; i++)
			printf("  %u \"%s\" %x\n", m[i].msg_len, data[i], m[i].msg_hdr.msg_flags);
		got += n;
	}
	say("recvmmsg of nothing", recvmmsg(s, m, 8, MSG_DONTWAIT, NULL));
	close(s), close(k);
}

static void waiting(void)
{
	printf("-- waiting\n");
	int s = open_at(AF_INET, "10.9.0.2", 5000), k = open_at(AF_INET, "10.9.0.1", 5001);
	int set_fd = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN | EPOLLET, .data.u32 = 7 };
	say("add", epoll_ctl(set_fd, EPOLL_CTL_ADD, s, &e));
	say("nothing", epoll_wait(set_fd, &e, 1, 0));
	send_to("k", k, "one", "10.9.0.2", 5000);
	say("one", epoll_wait(set_fd, &e, 1, -1));
	printf("  %x %u\n", e.events, e.data.u32);
	say("edge", epoll_wait(set_fd, &e, 1, 0));
	send_to("k", k, "two", "10.9.0.2", 5000);
	say("another edge", epoll_wait(set_fd, &e, 1, -1));
	receive("s", s, 20, 0);
	receive("s", s, 20, 0);
	struct timeval short_time = { .tv_usec = 20000 };
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof short_time);
	receive("timeout", s, 20, 0);
	close(set_fd), close(s), close(k);
}

static void refused(void)
{
	printf("-- refused\n");
	int s = open_at(AF_INET, "10.9.0.2", 5000);
	union address a = at("10.9.0.1", 5999);
	say("connect", connect(s, &a.any, size(&a)));
	say("send", send(s, "x", 1, 0));
	await(s, POLLIN);
	receive("refused", s, 20, 0);
	receive("once", s, 20, MSG_DONTWAIT);
	say("send", send(s, "x", 1, 0));
	await(s, POLLIN);
	int error = -1;
	socklen_t length = sizeof error;
	say("SO_ERROR", getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &length));
	printf("  %s\n", strerrorname_np(error));
	say("shutdown", shutdown(s, SHUT_RD));
	receive("after shutdown", s, 20, MSG_DONTWAIT);
	close(s);
}

static void errors(void)
{
	printf("-- errors\n");
	int s = open_at(AF_INET, "10.9.0.2", 5000);
	union address a = at("10.9.0.1", 0), six = at("fd09::1", 5001);
	static char big[70000];
	say("port 0", sendto(s, "x", 1, 0, &a.any, sizeof a.v4));
	a = at("10.9.0.1", 5001);
	say("too long", sendto(s, big, 65508, 0, &a.any, sizeof a.v4));
	say("v6 on v4", sendto(s, "x", 1, 0, &six.any, sizeof six.v6));
	say("short address", sendto(s, "x", 1, 0, &a.any, 8));
	say("long address", sendto(s, "x", 1, 0, &a.any, 200));
	say("MSG_OOB", sendto(s, "x", 1, MSG_OOB, &a.any, sizeof a.v4));
	say("EFAULT", sendto(s, (void *)8, 10, 0, &a.any, sizeof a.v4));
	a = at("10.9.0.255", 5001);
	say("broadcast", sendto(s, "x", 1, 0, &a.any, sizeof a.v4));
	say("listen", listen(s, 1));
	say("accept", accept(s, NULL, NULL));
	say("shutdown", shutdown(s, SHUT_WR));
	say("error queue", recv(s, big, 10, MSG_ERRQUEUE));
	union address b = at("10.9.0.2", 5000);
	int second = socket(AF_INET, SOCK_DGRAM, 0);
	say("in use", bind(second, &b.any, sizeof b.v4));
	say("bound twice", bind(s, &b.any, sizeof b.v4));
	b = at("10.9.0.77", 5000);
	say("not ours", bind(second, &b.any, sizeof b.v4));
	close(s), close(second);
}

static void large(int family, const char *ours, const char *theirs)
{
	printf("-- large %s\n", ours);
	int s = open_at(family, ours, 5000), k = open_at(family, theirs, 5001);
	static char out[20000], in[30000];
	for (size_t i = 0; i < sizeof out; i++)
		out[i] = (char)(i * 31 >> 3);
	union address a = at(theirs, 5001), b = at(ours, 5000);
	say("s to k", sendto(s, out, sizeof out, 0, &a.any, size(&a)));
	say("k", recv(k, in, sizeof in, 0));
	printf("  equal %d\n", !memcmp(in, out, sizeof out));
	memset(in, 0, sizeof in);
	say("k to s", sendto(k, out, sizeof out, 0, &b.any, size(&b)));
	say("s", recv(s, in, sizeof in, 0));
	printf("  equal %d\n", !memcmp(in, out, sizeof out));
	close(s), close(k);
}

static void mapped(void)
{
	printf("-- mapped\n");
	int s = open_at(AF_INET6, "::ffff:10.9.0.2", 5000), k = open_at(AF_INET, "10.9.0.1", 5001);
	set(s, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	names("names", s);
	send_to("k", k, "four", "10.9.0.2", 5000);
	receive_told("s", s, 128);
	send_to("s", s, "six", "::ffff:10.9.0.1", 5001);
	receive("k", k, 20, 0);
	send_to("s in v4 form", s, "six", "10.9.0.1", 5001);
	receive("k", k, 20, 0);
	close(s), close(k);
}

/* Sockets on no address in particular hear and answer everybody. */
static void everywhere(int family, const char *any, const char *near, const char *far, const char *far_ours)
{
	printf("-- everywhere %s\n", any);
	either = 1;
	int s = open_at(family, any, 5000);
	int n = open_at(family, near, 5001), f = open_at(family, far, 5002);
	names("names", s);
	receive("nothing yet", s, 20, MSG_DONTWAIT);
	printf("poll %x\n", readable(s));
	for (int round = 0; round < 2; round++) {
		send_to("near", n, "near", near, 5000);
		await(s, POLLIN);
		receive("s", s, 20, 0);
		send_to("far", f, "far", far_ours, 5000);
		await(s, POLLIN);
		receive("s", s, 20, 0);
		send_to("to near", s, "to near", near, 5001);
		receive("near", n, 20, 0);
		send_to("to far", s, "to far", far, 5002);
		receive("far", f, 20, 0);
	}
	struct iovec part = { "both", 4 };
	union address to[2] = { at(far, 5002), at(near, 5001) };
	struct mmsghdr m[4];
	memset(m, 0, sizeof m);
	for (int i = 0; i < 4; i++)
		m[i].msg_hdr = (struct msghdr){ .msg_name = &to[i % 2], .msg_namelen = size(&to[0]), .msg_iov = &part, .msg_iovlen = 1 };
	say("sendmmsg", sendmmsg(s, m, 4, 0));
	for (int i = 0; i < 2; i++) {
		receive("near", n, 20, 0);
		receive("far", f, 20, 0);
	}
	say("connect far", connect(s, &to[0].any, size(&to[0])));
	names("names", s);
	say("send", send(s, "x", 1, 0));
	receive("far", f, 20, 0);
	union address mine;
	socklen_t length = sizeof mine;
	getsockname(s, &mine.any, &length);
	say("far", sendto(f, "far", 3, 0, &mine.any, length));
	receive("s", s, 20, 0);
	close(s);

	printf("-- a client that goes both ways\n");
	s = socket(family, SOCK_DGRAM, 0);
	send_to("to near", s, "to near", near, 5001);
	send_to("to far", s, "to far", far, 5002);
	names("names", s);
	int client = 0;
	for (int i = 0; i < 2; i++) {
		char data[20];
		union address a;
		length = sizeof a;
		int k = i ? f : n;
		say("question", recvfrom(k, data, sizeof data, 0, &a.any, &length));
		say("answer", sendto(k, "answer", 6, 0, &a.any, length));
		receive("client", s, 20, 0);
		int port = ntohs(family == AF_INET6 ? a.v6.sin6_port : a.v4.sin_port);
		printf("  one port %d\n", !client || client == port);
		client = port;
	}
	close(s);

	printf("-- a client bound to no port\n");
	s = open_at(family, any, 0);
	say("connect far", connect(s, &to[0].any, size(&to[0])));
	say("send", send(s, "x", 1, 0));
	receive("far", f, 20, 0);
	close(s);
	s = open_at(family, any, 0);
	say("connect near", connect(s, &to[1].any, size(&to[1])));
	names("names", s);
	say("send", send(s, "x", 1, 0));
	receive("near", n, 20, 0);
	close(s), close(n), close(f);
}

/* A socket that shares its address, as far as its options say. */
static int sharing(const char *what, const char *ip, int reuse_port, int reuse_address)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	union address a = at(ip, 5300);
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &reuse_port, sizeof reuse_port);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse_address, sizeof reuse_address);
	if (say(what, bind(fd, &a.any, size(&a))) == 0)
		return fd;
	close(fd);
	return -1;
}

/* How many datagrams wait, once there are so many on all sockets; they are taken. */
static void counted(const char *what, const int *fds, int count, int wanted, int apart)
{
	int got[8] = { 0 }, sum = 0;
	struct pollfd p[8];
	for (int i = 0; i < count; i++)
		p[i] = (struct pollfd){ fds[i], POLLIN, 0 };
	while (sum < wanted && poll(p, count, -1) > 0) {
		char data[64];
		for (int i = 0; i < count; i++)
			for (; recv(fds[i], data, sizeof data, MSG_DONTWAIT) >= 0; sum++)
				got[i]++;
	}
	printf("%s: %d of them, on the first %d\n", what, sum, apart ? got[0] : -1);
}

/* Sends from so many ports of the kernel's side. */
static void send_many(int count)
{
	union address to = at("10.9.0.2", 5300);
	for (int i = 0; i < count; i++) {
		int fd = open_at(AF_INET, "10.9.0.1", 0);
		if (sendto(fd, "flow", 4, 0, &to.any, size(&to)) != 4)
			say("sendto", -1);
		close(fd);
	}
}

/* Sockets of one address: who may have it, who hears a peer. */
static void shared(void)
{
	printf("-- a shared port\n");
	int fds[8], n = 0, peer = open_at(AF_INET, "10.9.0.1", 5301);
	union address to = at("10.9.0.1", 5301);
	for (; n < 5; n++)
		fds[n] = sharing("bind", "10.9.0.2", 1, n == 3);
	sharing("without an option", "10.9.0.2", 0, 0);
	sharing("by address", "10.9.0.2", 0, 1);
	send_many(100);
	counted("of many peers", fds, n, 100, 0);
	say("connect", connect(fds[0], &to.any, size(&to)));
	for (int i = 0; i < 5; i++)
		send_to("to the connected one", peer, "peer", "10.9.0.2", 5300);
	counted("of the peer", fds, n, 5, 1);
	send_many(20);
	counted("of others", fds, n, 20, 1);
	say("answer", send(fds[0], "answer", 6, 0));
	receive("peer", peer, 20, 0);
	close(fds[0]);
	for (int i = 0; i < 5; i++)
		send_to("to the rest", peer, "peer", "10.9.0.2", 5300);
	counted("of the peer", fds + 1, n - 1, 5, 0);
	while (n > 2)
		close(fds[--n]);
	send_many(20);
	counted("with one left", fds + 1, 1, 20, 1);
	sharing("still taken", "10.9.0.2", 0, 0);
	close(fds[1]);
	fds[0] = sharing("free", "10.9.0.2", 0, 0);
	sharing("taken again", "10.9.0.2", 1, 0);
	close(fds[0]);
	fds[0] = sharing("both options", "10.9.0.2", 1, 1);
	fds[1] = sharing("one of them", "10.9.0.2", 0, 1);
	close(fds[0]), close(fds[1]), close(peer);
}

static int group(const char *what, int fd, int name, const char *ip, const char *on)
{
	struct ip_mreqn m = { .imr_multiaddr = at(ip, 0).v4.sin_addr };
	if (!strncmp(on, "veth", 4))
		m.imr_ifindex = if_nametoindex(on);
	else
		m.imr_address = at(on, 0).v4.sin_addr;
	return say(what, setsockopt(fd, IPPROTO_IP, name, &m, m.imr_ifindex ? sizeof m : sizeof(struct ip_mreq)));
}

/* Groups joined before a socket has an address, and after. What we send to them on our interface, we hear. */
static void groups(void)
{
	printf("-- groups\n");
	struct in_addr own = at("10.9.0.2", 0).v4.sin_addr, got = { 0 };
	socklen_t length = sizeof got;
	int sender = socket(AF_INET, SOCK_DGRAM, 0), ttl = 3;
	say("IP_MULTICAST_IF", setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &own, sizeof own));
	say("IP_MULTICAST_TTL", setsockopt(sender, IPPROTO_IP, IP_MULTICAST_TTL, &ttl, sizeof ttl));
	union address a = at("10.9.0.2", 5500);
	say("bind", bind(sender, &a.any, size(&a)));
	say("getsockopt", getsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &got, &length));
	printf("  %s %u\n", inet_ntoa(got), length);

	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	group("join", fd, IP_ADD_MEMBERSHIP, "239.1.2.3", "10.9.0.2");
	group("again", fd, IP_ADD_MEMBERSHIP, "239.1.2.3", "10.9.0.2");
	group("join another", fd, IP_ADD_MEMBERSHIP, "239.1.2.4", "veth0");
	group("join a third", fd, IP_ADD_MEMBERSHIP, "239.1.2.5", "10.9.0.2");
	group("and leave it", fd, IP_DROP_MEMBERSHIP, "239.1.2.5", "10.9.0.2");
	group("once more", fd, IP_DROP_MEMBERSHIP, "239.1.2.5", "10.9.0.2");
	group("no group", fd, IP_ADD_MEMBERSHIP, "10.1.2.3", "10.9.0.2");
	group("nobody's", fd, IP_ADD_MEMBERSHIP, "239.1.2.3", "10.66.0.2");
	group("the other side", fd, IP_ADD_MEMBERSHIP, "239.1.2.3", "10.9.0.1");
	group("and leave it", fd, IP_DROP_MEMBERSHIP, "239.1.2.3", "10.9.0.1");
	a = at("0.0.0.0", 5501);
	say("bind", bind(fd, &a.any, size(&a)));
	send_to("to the first", sender, "one", "239.1.2.3", 5501);
	receive("first", fd, 20, 0);
	send_to("to the second", sender, "two", "239.1.2.4", 5501);
	receive("second", fd, 20, 0);
	send_to("to the third", sender, "three", "239.1.2.5", 5501);
	receive("third", fd, 20, MSG_DONTWAIT);
	group("again", fd, IP_ADD_MEMBERSHIP, "239.1.2.3", "10.9.0.2");
	group("leave", fd, IP_DROP_MEMBERSHIP, "239.1.2.3", "10.9.0.2");
	group("leave", fd, IP_DROP_MEMBERSHIP, "239.1.2.3", "10.9.0.2");
	send_to("to the first", sender, "one", "239.1.2.3", 5501);
	receive("first", fd, 20, MSG_DONTWAIT);
	close(fd);

	fd = socket(AF_INET, SOCK_DGRAM, 0);
	group("join", fd, IP_ADD_MEMBERSHIP, "239.1.2.3", "veth0");
	a = at("239.1.2.3", 5502);
	say("bind to the group", bind(fd, &a.any, size(&a)));
	send_to("to it", sender, "four", "239.1.2.3", 5502);
	receive("it", fd, 20, 0);
	send_to("to the host", sender, "five", "10.9.0.2", 5502);
	receive("host", fd, 20, MSG_DONTWAIT);
	close(sender);
	sender = socket(AF_INET, SOCK_DGRAM, 0);
	say("IP_MULTICAST_IF", setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &own, sizeof own));
	send_to("by a new socket", sender, "six", "239.1.2.3", 5502);
	receive("it", fd, 20, 0);
	receive("once", fd, 20, MSG_DONTWAIT);
	close(fd), close(sender);

	int number = if_nametoindex("veth0");
	struct ipv6_mreq m6 = { .ipv6mr_multiaddr = at("ff15::123", 0).v6.sin6_addr, .ipv6mr_interface = number };
	sender = open_at(AF_INET6, "fd09::2", 0);
	say("IPV6_MULTICAST_IF", setsockopt(sender, IPPROTO_IPV6, IPV6_MULTICAST_IF, &number, sizeof number));
	fd = socket(AF_INET6, SOCK_DGRAM, 0);
	say("join", setsockopt(fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &m6, sizeof m6));
	say("again", setsockopt(fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &m6, sizeof m6));
	a = at("::", 5503);
	say("bind", bind(fd, &a.any, size(&a)));
	send_to("to the group", sender, "six", "ff15::123", 5503);
	receive("group", fd, 20, 0);
	receive("once", fd, 20, MSG_DONTWAIT);
	say("leave", setsockopt(fd, IPPROTO_IPV6, IPV6_LEAVE_GROUP, &m6, sizeof m6));
	say("leave", setsockopt(fd, IPPROTO_IPV6, IPV6_LEAVE_GROUP, &m6, sizeof m6));
	close(fd), close(sender);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	hang_guard("stack_udp");
	exchange(AF_INET, "10.9.0.2", "10.9.0.1", 5000);
	exchange(AF_INET6, "fd09::2", "fd09::1", 5000);
	told();
	times();
	many();
	waiting();
	refused();
	errors();
	large(AF_INET, "10.9.0.2", "10.9.0.1");
	large(AF_INET6, "fd09::2", "fd09::1");
	mapped();
	shared();
	groups();
	everywhere(AF_INET, "0.0.0.0", "127.0.0.1", "10.9.0.1", "10.9.0.2");
	everywhere(AF_INET6, "::", "::1", "fd09::1", "fd09::2");
	return 0;
}
