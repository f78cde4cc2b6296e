/* A UDP socket of kernel and stack joins a group on the stack's interface, hears a datagram that the
 * kernel's other end sends there, and leaves. Says what each call answers. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guard.h"

static void say(const char *what, long got)
{
	printf("%s %s\n", what, got < 0 ? strerrorname_np(errno) : "ok");
}

int main(void)
{
	hang_guard("stack_groups");
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(7001) }, to = any, from = any;
	struct ip_mreq member = { 0 };
	char byte = 0;
	inet_pton(AF_INET, "239.1.2.3", &member.imr_multiaddr);
	to.sin_addr = member.imr_multiaddr;
	inet_pton(AF_INET, "10.9.0.1", &from.sin_addr);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), sender = socket(AF_INET, SOCK_DGRAM, 0);
	say("bind", bind(fd, (void *)&any, sizeof any));
	inet_pton(AF_INET, "10.9.0.2", &member.imr_interface);
	say("join", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &member, sizeof member));
	say("again", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &member, sizeof member));
	say("short", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &member, 4));
	setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &from.sin_addr, sizeof from.sin_addr);
	say("send", sendto(sender, "g", 1, 0, (void *)&to, sizeof to));
	say("hear", recv(fd, &byte, 1, 0) == 1 && byte == 'g' ? 0 : -1);
	say("leave", setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &member, sizeof member));
	say("again", setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &member, sizeof member));

	/* The same by the names that do not depend on the family (RFC 3678). */
	struct group_req request = { .gr_interface = if_nametoindex("veth0") };
	*(struct sockaddr_in *)&request.gr_group = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = to.sin_addr };
	say("join", setsockopt(fd, IPPROTO_IP, MCAST_JOIN_GROUP, &request, sizeof request));
	say("again", setsockopt(fd, IPPROTO_IP, MCAST_JOIN_GROUP, &request, sizeof request));
	say("short", setsockopt(fd, IPPROTO_IP, MCAST_JOIN_GROUP, &request, 24));
	say("send", sendto(sender, "h", 1, 0, (void *)&to, sizeof to));
	say("hear", recv(fd, &byte, 1, 0) == 1 && byte == 'h' ? 0 : -1);
	say("leave", setsockopt(fd, IPPROTO_IP, MCAST_LEAVE_GROUP, &request, sizeof request));
	say("again", setsockopt(fd, IPPROTO_IP, MCAST_LEAVE_GROUP, &request, sizeof request));
	request.gr_group.ss_family = AF_INET6;
	say("family", setsockopt(fd, IPPROTO_IP, MCAST_JOIN_GROUP, &request, sizeof request));
	return 0;
}
