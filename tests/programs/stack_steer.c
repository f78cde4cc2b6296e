/* Which interface a socket of the stack uses: veth0 or veth2, whose other ends, veth1 and veth3, are the
 * kernel's. 10.7.0.1 is the kernel's too and can be reached by either; a rule has port 7101 by veth2. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "trace_check.h"
#include "guard.h"

static struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	inet_pton(AF_INET, text, &a.sin_addr);
	return a;
}

static const char *name(const struct sockaddr_in *a)
{
	static char text[INET_ADDRSTRLEN];
	return inet_ntop(AF_INET, &a->sin_addr, text, sizeof text);
}

/* A socket bound to an address, 0.0.0.0 for none, and to a device, if that is given. */
static int made(int type, const char *at, int port, const char *device)
{
	struct sockaddr_in a = address(at, port);
	int fd = socket(AF_INET, type, 0), one = 1;
	CHECK(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (device)
		CHECK(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device)) == 0);
	if (port || a.sin_addr.s_addr)
		CHECK(bind(fd, (void *)&a, sizeof a) == 0);
	return fd;
}

/* Connects to a port of 10.7.0.1, and says from where. */
static void connects(int port, const char *device)
{
	struct sockaddr_in to = address("10.7.0.1", port), from;
	socklen_t length = sizeof from;
	char bound[IFNAMSIZ] = "";
	socklen_t room = sizeof bound;
	int listener = made(SOCK_STREAM, "10.7.0.1", port, NULL);
	CHECK(listen(listener, 1) == 0);
	int fd = made(SOCK_STREAM, "0.0.0.0", 0, device);
	CHECK(connect(fd, (void *)&to, sizeof to) == 0);
	int peer = accept(listener, (void *)&from, &length);
	CHECK(peer >= 0);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, bound, &room) == 0);
	printf("to %d by \"%s\" from %s\n", port, bound, name(&from));
	close(fd), close(peer), close(listener);
}

/* What the kernel's side finds when it connects to a listener that is bound to veth2. */
static void listens(void)
{
	struct { const char *from, *to; } ways[] = { { "10.9.0.1", "10.9.0.2" }, { "10.8.0.1", "10.8.0.2" } };
	int listener = made(SOCK_STREAM, "0.0.0.0", 7200, "veth2");
	CHECK(listen(listener, 4) == 0);
	for (int i = 0; i < 2; i++) {
		struct sockaddr_in to = address(ways[i].to, 7200);
		int fd = made(SOCK_STREAM, ways[i].from, 0, NULL);
		int done = connect(fd, (void *)&to, sizeof to);
		printf("listener at %s: %s\n", ways[i].to, done ? strerrorname_np(errno) : "accepts");
		close(fd);
	}
	close(listener);
}

static void says(int fd, const struct sockaddr_in *to, char what)
{
	CHECK(sendto(fd, &what, 1, 0, (const void *)to, sizeof *to) == 1);
}

/* A datagram's sender. */
static void hears(const char *what, int fd)
{
	struct sockaddr_in from;
	socklen_t length = sizeof from;
	char byte;
	ssize_t got = recvfrom(fd, &byte, 1, 0, (void *)&from, &length);
	CHECK(got == 1);
	printf("%s: %c from %s\n", what, byte, name(&from));
}

static void datagrams(void)
{
	int there = made(SOCK_DGRAM, "0.0.0.0", 7101, "veth3"), fd = made(SOCK_DGRAM, "0.0.0.0", 0, NULL);
	struct sockaddr_in to = address("10.7.0.1", 7101);
	says(fd, &to, 'r');
	hears("by rule", there);
	close(fd), close(there);

	int only = made(SOCK_DGRAM, "0.0.0.0", 7301, "veth2"), all = made(SOCK_DGRAM, "0.0.0.0", 7302, NULL);
	int near = made(SOCK_DGRAM, "10.9.0.1", 0, NULL), far = made(SOCK_DGRAM, "10.8.0.1", 0, NULL);
	struct sockaddr_in wrong = address("10.9.0.2", 7301), after = address("10.9.0.2", 7302);
	struct sockaddr_in right = address("10.8.0.2", 7301);
	says(near, &wrong, 'w');
	says(near, &after, 'a'); /* what came before it by the same link has been dealt with */
	hears("unbound", all);
	char byte;
	CHECK(recv(only, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	says(far, &right, 'b');
	hears("bound", only);
	close(only), close(all), close(near), close(far);
}

static void groups(void)
{
	struct sockaddr_in group = address("239.1.2.3", 7401);
	struct ip_mreqn by_number = { .imr_multiaddr = group.sin_addr, .imr_ifindex = if_nametoindex("veth2") };
	struct ip_mreqn none = { .imr_multiaddr = group.sin_addr, .imr_ifindex = 9999 };
	struct ip_mreq there = { .imr_multiaddr = group.sin_addr };
	inet_pton(AF_INET, "10.8.0.1", &there.imr_interface);
	int off = 0, on = 1;

	int kernel = made(SOCK_DGRAM, "239.1.2.3", 7401, NULL);
	CHECK(setsockopt(kernel, IPPROTO_IP, IP_MULTICAST_ALL, &off, sizeof off) == 0);
	CHECK(setsockopt(kernel, IPPROTO_IP, IP_ADD_MEMBERSHIP, &there, sizeof there) == 0);
	int fd = made(SOCK_DGRAM, "10.9.0.2", 7402, NULL);
	CHECK(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &none, sizeof none) == -1);
	printf("IP_MULTICAST_IF 9999: %s\n", strerrorname_np(errno));
	CHECK(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &by_number, sizeof by_number) == 0);
	says(fd, &group, 'm');
	hears("the kernel's member", kernel);
	close(fd), close(kernel);

	fd = made(SOCK_DGRAM, "0.0.0.0", 7401, NULL);
	CHECK(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0);
	CHECK(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &none, sizeof none) == -1);
	printf("IP_ADD_MEMBERSHIP 9999: %s\n", strerrorname_np(errno));
	CHECK(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &by_number, sizeof by_number) == 0);
	int sender = made(SOCK_DGRAM, "10.8.0.1", 0, NULL);
	CHECK(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &there.imr_interface, 4) == 0);
	says(sender, &group, 'g');
	char byte, control[64];
	struct iovec part = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof control };
	CHECK(recvmsg(fd, &msg, 0) == 1 && byte == 'g');
	struct in_pktinfo *info = (void *)CMSG_DATA(CMSG_FIRSTHDR(&msg));
	char at[IF_NAMESIZE] = "?";
	printf("our member: %c by %s\n", byte, if_indextoname(info->ipi_ifindex, at) ? at : "nothing");
	close(fd), close(sender);
}

/* IPv6: a group of veth2's, by number, and the way out. */
static void groups_v6(void)
{
	struct sockaddr_in6 own = { .sin6_family = AF_INET6, .sin6_port = htons(7501) }, group = own, peer = own;
	struct ipv6_mreq member = { .ipv6mr_interface = if_nametoindex("veth2") };
	int number = if_nametoindex("veth2"), way = if_nametoindex("veth3"), got = 0;
	socklen_t length = sizeof got;
	char byte;
	inet_pton(AF_INET6, "fd08::2", &own.sin6_addr);
	inet_pton(AF_INET6, "fd08::1", &peer.sin6_addr);
	inet_pton(AF_INET6, "ff15::99", &group.sin6_addr);
	member.ipv6mr_multiaddr = group.sin6_addr;
	peer.sin6_port = 0;
	int any = socket(AF_INET6, SOCK_DGRAM, 0), sender = socket(AF_INET6, SOCK_DGRAM, 0);
	struct sockaddr_in6 all = { .sin6_family = AF_INET6, .sin6_port = htons(7501) };
	CHECK(bind(any, (void *)&all, sizeof all) == 0);
	CHECK(setsockopt(any, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &member, sizeof member) == 0);
	CHECK(bind(sender, (void *)&peer, sizeof peer) == 0);
	CHECK(setsockopt(sender, IPPROTO_IPV6, IPV6_MULTICAST_IF, &way, sizeof way) == 0);
	CHECK(sendto(sender, "6", 1, 0, (void *)&group, sizeof group) == 1);
	CHECK(recv(any, &byte, 1, 0) == 1);
	CHECK(setsockopt(any, IPPROTO_IPV6, IPV6_MULTICAST_IF, &number, sizeof number) == 0);
	CHECK(getsockopt(any, IPPROTO_IPV6, IPV6_MULTICAST_IF, &got, &length) == 0);
	printf("IPv6: %c, IPV6_MULTICAST_IF %s\n", byte, got == number ? "kept" : "lost");
}

int main(void)
{
	hang_guard("stack_steer");
	connects(7100, NULL);
	connects(7101, NULL);
	connects(7100, "veth2");
	connects(7101, "veth0");
	connects(7100, "lo");
	listens();
	datagrams();
	groups();
	groups_v6();
	return 0;
}
