/*
 * Whom a member of a multicast group hears: the options of ip(7) and RFC 3678 on sockets at 10.9.0.2 and
 * fd09::2, by address and by number, a line for what each answers; what is heard of datagrams to the group
 * afterwards; and what the lists say.
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
#include <sys/socket.h>
#include <unistd.h>

#include "guard.h"

static int family, fd, sender;
static const char *us, *group;

static const char *outcome(int result)
{
	return result == 0 ? "ok" : strerrorname_np(errno);
}

static struct sockaddr_storage at(const char *ip, int port)
{
	struct sockaddr_storage all = { .ss_family = strchr(ip, ':') ? AF_INET6 : AF_INET };
	struct sockaddr_in *four = (void *)&all;
	struct sockaddr_in6 *six = (void *)&all;
	*(all.ss_family == AF_INET ? &four->sin_port : &six->sin6_port) = htons(port);
	inet_pton(all.ss_family, ip, all.ss_family == AF_INET ? (void *)&four->sin_addr : (void *)&six->sin6_addr);
	return all;
}

static socklen_t size(void)
{
	return family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static int level(void)
{
	return family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
}

/* By number: any option of RFC 3678. */
static void by_number(const char *name, int option, const char *to, const char *source)
{
	struct group_source_req request = { .gsr_interface = if_nametoindex("veth0") };
	request.gsr_group = at(to, 0);
	request.gsr_source = at(source, 0);
	socklen_t length = option == MCAST_JOIN_GROUP || option == MCAST_LEAVE_GROUP ? sizeof(struct group_req) : sizeof request;
	printf("%s %s %s: %s\n", name, to, source, outcome(setsockopt(fd, level(), option, &request, length)));
}
#define NUMBER(option, to, source) by_number(#option, option, to, source)

/* By address: those of ip(7). */
static void by_address(const char *name, int option, const char *to, const char *iface, const char *source, socklen_t length)
{
	struct ip_mreq_source request = { 0 };
	inet_pton(AF_INET, to, &request.imr_multiaddr);
	inet_pton(AF_INET, iface, &request.imr_interface);
	inet_pton(AF_INET, source, &request.imr_sourceaddr);
	printf("%s %s at %s %s %u: %s\n", name, to, iface, source, length,
	       outcome(setsockopt(fd, IPPROTO_IP, option, &request, length)));
}
#define ADDRESS(option, to, iface, source, length) by_address(#option, option, to, iface, source, length)

/* What we send to the group comes back, or does not. What came although it should not have is found before the
 * next that should: so the wait for nothing may be short. */
static void hear(int comes)
{
	static char sent, got;
	struct sockaddr_storage to = at(group, 7001);
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	sent++;
	if (sendto(sender, &sent, 1, 0, (void *)&to, size()) != 1)
		printf("send: %s\n", strerrorname_np(errno));
	int woken = poll(&ready, 1, comes ? 10000 : 5);
	printf("hears us: %s\n", woken != 1 ? "no" : recv(fd, &got, 1, 0) == 1 && got == sent ? "yes" : "too late");
}

/* What MCAST_MSFILTER and IP_MSFILTER say, with room for so many. */
static void list(unsigned room)
{
	struct group_filter *filter = calloc(1, GROUP_FILTER_SIZE(20));
	socklen_t length = GROUP_FILTER_SIZE(room);
	char text[64];
	filter->gf_interface = if_nametoindex("veth0");
	filter->gf_group = at(group, 0);
	filter->gf_numsrc = room;
	int done = getsockopt(fd, level(), MCAST_MSFILTER, filter, &length);
	printf("MCAST_MSFILTER: %s", outcome(done));
	if (!done)
		printf(", mode %u, %u of %u, %u bytes", filter->gf_fmode, room, filter->gf_numsrc, length);
	for (unsigned n = 0; !done && n < room && n < filter->gf_numsrc; n++) {
		struct sockaddr *one = (void *)&filter->gf_slist[n];
		void *ip = family == AF_INET ? (void *)&((struct sockaddr_in *)one)->sin_addr : (void *)&((struct sockaddr_in6 *)one)->sin6_addr;
		printf(" %s", inet_ntop(one->sa_family, ip, text, sizeof text));
	}
	printf("\n");
	free(filter);
	if (family == AF_INET6)
		return;
	struct ip_msfilter *old = calloc(1, IP_MSFILTER_SIZE(20));
	length = IP_MSFILTER_SIZE(room);
	inet_pton(AF_INET, group, &old->imsf_multiaddr);
	inet_pton(AF_INET, us, &old->imsf_interface);
	old->imsf_numsrc = room;
	done = getsockopt(fd, IPPROTO_IP, IP_MSFILTER, old, &length);
	printf("IP_MSFILTER: %s", outcome(done));
	if (!done)
		printf(", mode %u, %u of %u, %u bytes", old->imsf_fmode, room, old->imsf_numsrc, length);
	for (unsigned n = 0; !done && n < room && n < old->imsf_numsrc; n++)
		printf(" %s", inet_ntop(AF_INET, &old->imsf_slist[n], text, sizeof text));
	printf("\n");
	free(old);
}

/* Sets a list of `count`: us, if it says so, and strangers. Claims to have `said`. */
static void set_list(unsigned mode, int with_us, unsigned count, unsigned said)
{
	struct group_filter *filter = calloc(1, GROUP_FILTER_SIZE(80));
	struct ip_msfilter *old = calloc(1, IP_MSFILTER_SIZE(80));
	filter->gf_interface = if_nametoindex("veth0");
	filter->gf_group = at(group, 0);
	inet_pton(AF_INET, group, &old->imsf_multiaddr);
	inet_pton(AF_INET, us, &old->imsf_interface);
	filter->gf_fmode = old->imsf_fmode = mode;
	filter->gf_numsrc = old->imsf_numsrc = said;
	for (unsigned n = 0; n < count; n++) {
		char text[64];
		snprintf(text, sizeof text, family == AF_INET ? "10.8.0.%u" : "fd08::%u", n + 1);
		filter->gf_slist[n] = at(with_us && n == 0 ? us : text, 0);
		inet_pton(AF_INET, with_us && n == 0 ? us : text, &old->imsf_slist[n]);
	}
	printf("MCAST_MSFILTER %u %u/%u: %s\n", mode, count, said,
	       outcome(setsockopt(fd, level(), MCAST_MSFILTER, filter, GROUP_FILTER_SIZE(count))));
	if (family == AF_INET)
		printf("IP_MSFILTER %u %u/%u: %s\n", mode, count, said,
		       outcome(setsockopt(fd, IPPROTO_IP, IP_MSFILTER, old, IP_MSFILTER_SIZE(count))));
	free(filter);
	free(old);
}

static void place(int socket)
{
	struct sockaddr_storage own = at(family == AF_INET ? us : "::", 7001);
	int on = 1;
	/* Only what the socket itself joined counts. */
	setsockopt(socket, IPPROTO_IP, IP_MULTICAST_ALL, &(int){ 0 }, sizeof on);
	setsockopt(socket, IPPROTO_IPV6, 29 /* IPV6_MULTICAST_ALL */, &(int){ 0 }, sizeof on);
	setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	/* What is sent to a group arrives at sockets with its address or none. */
	if (family == AF_INET)
		own = at(group, 7001);
	printf("bind: %s\n", outcome(bind(socket, (void *)&own, size())));
}

static void fresh(void)
{
	close(fd);
	fd = socket(family, SOCK_DGRAM, 0);
}

static void many(int option, int up_to)
{
	char text[64];
	for (int n = 1; n <= up_to; n++) {
		snprintf(text, sizeof text, family == AF_INET ? "10.8.1.%d" : "fd08::1:%d", n);
		by_number("one more", option, group, text);
	}
}

static void all(void)
{
	const char *stranger = family == AF_INET ? "10.8.0.9" : "fd08::9";
	const char *other = family == AF_INET ? "239.1.2.4" : "ff05::4";
	int most = family == AF_INET ? 10 : 64;
	sender = socket(family, SOCK_DGRAM, 0);
	struct sockaddr_storage own = at(us, 0);
	unsigned index = if_nametoindex("veth0");
	bind(sender, (void *)&own, size());
	if (family == AF_INET6)
		setsockopt(sender, IPPROTO_IPV6, IPV6_MULTICAST_IF, &index, sizeof index);
	else
		setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &((struct sockaddr_in *)&own)->sin_addr, 4);
	fd = socket(family, SOCK_DGRAM, 0);
	place(fd);
	NUMBER(MCAST_BLOCK_SOURCE, group, us);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, group, us);
	list(4);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, us, us);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, family == AF_INET ? "fd09::1" : "10.9.0.1");
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, stranger);
	hear(0);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, us);
	hear(1);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, us);
	NUMBER(MCAST_JOIN_GROUP, group, us);
	NUMBER(MCAST_BLOCK_SOURCE, group, us);
	NUMBER(MCAST_UNBLOCK_SOURCE, group, us);
	list(0);
	list(1);
	list(4);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, group, stranger);
	hear(1);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, group, stranger);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, group, us);
	hear(0);
	NUMBER(MCAST_LEAVE_GROUP, group, us);
	NUMBER(MCAST_JOIN_GROUP, group, us);
	hear(1);
	NUMBER(MCAST_UNBLOCK_SOURCE, group, us);
	NUMBER(MCAST_BLOCK_SOURCE, group, us);
	hear(0);
	NUMBER(MCAST_BLOCK_SOURCE, group, us);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, us);
	NUMBER(MCAST_UNBLOCK_SOURCE, group, us);
	hear(1);
	/* A list that had members keeps its kind. */
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, us);
	NUMBER(MCAST_LEAVE_GROUP, group, us);
	NUMBER(MCAST_JOIN_GROUP, group, us);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, group, us);
	hear(0);
	NUMBER(MCAST_UNBLOCK_SOURCE, group, us);
	hear(1);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, us);
	hear(1);
	NUMBER(MCAST_LEAVE_GROUP, group, us);
	many(MCAST_JOIN_SOURCE_GROUP, most + 1);
	NUMBER(MCAST_LEAVE_GROUP, group, us);
	NUMBER(MCAST_JOIN_GROUP, group, us);
	many(MCAST_BLOCK_SOURCE, most + 1);
	list(2);
	NUMBER(MCAST_LEAVE_GROUP, group, us);
	/* Whole lists. */
	set_list(MCAST_INCLUDE, 1, 2, 2);
	NUMBER(MCAST_JOIN_GROUP, group, us);
	set_list(MCAST_INCLUDE, 1, 2, 2);
	hear(1);
	list(4);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, stranger);
	list(4);
	set_list(MCAST_EXCLUDE, 1, 2, 2);
	hear(0);
	NUMBER(MCAST_UNBLOCK_SOURCE, group, us);
	hear(1);
	set_list(MCAST_EXCLUDE, 0, 0, 0);
	list(4);
	set_list(MCAST_EXCLUDE, 0, most, most);
	set_list(MCAST_EXCLUDE, 0, most + 1, most + 1);
	set_list(MCAST_EXCLUDE, 0, 1, 2);
	set_list(7, 0, 1, 1);
	set_list(MCAST_INCLUDE, 0, 0, 0);
	list(4);
	/* Two sockets, what one wants the other need not hear. */
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, stranger);
	int first = fd;
	fd = socket(family, SOCK_DGRAM, 0);
	place(fd);
	NUMBER(MCAST_JOIN_GROUP, group, us);
	hear(1);
	int second = fd;
	fd = first;
	hear(0);
	close(second);
	/* Before the socket has an address. */
	fresh();
	NUMBER(MCAST_BLOCK_SOURCE, group, us);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, stranger);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, us);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, group, us);
	NUMBER(MCAST_BLOCK_SOURCE, group, us);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, group, stranger);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, group, stranger);
	NUMBER(MCAST_JOIN_SOURCE_GROUP, other, us);
	NUMBER(MCAST_LEAVE_SOURCE_GROUP, other, us);
	NUMBER(MCAST_LEAVE_GROUP, other, us);
	place(fd);
	hear(1);
	list(4);
	fresh();
	NUMBER(MCAST_JOIN_GROUP, group, us);
	NUMBER(MCAST_BLOCK_SOURCE, group, stranger);
	NUMBER(MCAST_BLOCK_SOURCE, group, us);
	NUMBER(MCAST_UNBLOCK_SOURCE, group, stranger);
	place(fd);
	hear(0);
	list(4);
	if (family == AF_INET) {
		fresh();
		place(fd);
		ADDRESS(IP_ADD_SOURCE_MEMBERSHIP, group, us, us, 12);
		hear(1);
		ADDRESS(IP_ADD_SOURCE_MEMBERSHIP, group, us, us, 11);
		ADDRESS(IP_ADD_SOURCE_MEMBERSHIP, group, us, us, 13);
		ADDRESS(IP_ADD_SOURCE_MEMBERSHIP, group, "10.7.7.7", us, 12);
		ADDRESS(IP_ADD_SOURCE_MEMBERSHIP, us, us, us, 12);
		ADDRESS(IP_BLOCK_SOURCE, group, us, us, 12);
		ADDRESS(IP_DROP_SOURCE_MEMBERSHIP, group, us, stranger, 12);
		ADDRESS(IP_DROP_SOURCE_MEMBERSHIP, group, us, us, 12);
		ADDRESS(IP_UNBLOCK_SOURCE, group, us, us, 12);
		NUMBER(MCAST_JOIN_GROUP, group, us);
		ADDRESS(IP_BLOCK_SOURCE, group, us, us, 12);
		hear(0);
		ADDRESS(IP_UNBLOCK_SOURCE, group, us, us, 12);
		hear(1);
	}
	close(fd);
	close(sender);
}

int main(void)
{
	hang_guard("stack_sources");
	family = AF_INET;
	us = "10.9.0.2";
	group = "239.1.2.3";
	all();
	family = AF_INET6;
	us = "fd09::2";
	group = "ff05::1:3";
	all();
	return 0;
}
