/*
 * Every option of socket(7), tcp(7), ip(7), ipv6(7) and udp(7) on sockets bound to 10.9.0.2 or fd09::2:
 * a line each, with what getsockopt says of a fresh socket, what setsockopt says to that very value, and
 * what to 1; and what getsockopt says of one that was set to another value before it was bound. With arguments, congestion controls of those names instead.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/in6.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif
#ifndef IPV6_RECVFRAGSIZE
#define IPV6_RECVFRAGSIZE 77
#endif

#define O(level, name) { level, name, #name }

static const struct {
	int level, name;
	const char *text;
} options[] = {
	O(SOL_SOCKET, SO_ACCEPTCONN), O(SOL_SOCKET, SO_ATTACH_BPF), O(SOL_SOCKET, SO_ATTACH_FILTER),
	O(SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF), O(SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF),
	O(SOL_SOCKET, SO_BINDTODEVICE), O(SOL_SOCKET, SO_BPF_EXTENSIONS), O(SOL_SOCKET, SO_BROADCAST),
	O(SOL_SOCKET, SO_BSDCOMPAT), O(SOL_SOCKET, SO_BUSY_POLL), O(SOL_SOCKET, SO_DEBUG),
	O(SOL_SOCKET, SO_DETACH_FILTER), O(SOL_SOCKET, SO_DOMAIN), O(SOL_SOCKET, SO_DONTROUTE),
	O(SOL_SOCKET, SO_ERROR), O(SOL_SOCKET, SO_GET_FILTER), O(SOL_SOCKET, SO_INCOMING_CPU),
	O(SOL_SOCKET, SO_INCOMING_NAPI_ID), O(SOL_SOCKET, SO_KEEPALIVE), O(SOL_SOCKET, SO_LINGER),
	O(SOL_SOCKET, SO_LOCK_FILTER), O(SOL_SOCKET, SO_MARK), O(SOL_SOCKET, SO_MAX_PACING_RATE),
	O(SOL_SOCKET, SO_NOFCS), O(SOL_SOCKET, SO_NO_CHECK), O(SOL_SOCKET, SO_OOBINLINE),
	O(SOL_SOCKET, SO_PASSCRED), O(SOL_SOCKET, SO_PASSSEC), O(SOL_SOCKET, SO_PEEK_OFF),
	O(SOL_SOCKET, SO_PEERCRED), O(SOL_SOCKET, SO_PEERNAME), O(SOL_SOCKET, SO_PEERSEC),
	O(SOL_SOCKET, SO_PRIORITY), O(SOL_SOCKET, SO_PROTOCOL), O(SOL_SOCKET, SO_RCVBUF),
	O(SOL_SOCKET, SO_RCVBUFFORCE), O(SOL_SOCKET, SO_RCVLOWAT), O(SOL_SOCKET, SO_RCVTIMEO),
	O(SOL_SOCKET, SO_REUSEADDR), O(SOL_SOCKET, SO_REUSEPORT), O(SOL_SOCKET, SO_RXQ_OVFL),
	O(SOL_SOCKET, SO_SELECT_ERR_QUEUE), O(SOL_SOCKET, SO_SNDBUF), O(SOL_SOCKET, SO_SNDBUFFORCE),
	O(SOL_SOCKET, SO_SNDLOWAT), O(SOL_SOCKET, SO_SNDTIMEO), O(SOL_SOCKET, SO_TIMESTAMP),
	O(SOL_SOCKET, SO_TIMESTAMPING), O(SOL_SOCKET, SO_TIMESTAMPNS), O(SOL_SOCKET, SO_TXTIME),
	O(SOL_SOCKET, SO_TYPE), O(SOL_SOCKET, SO_WIFI_STATUS), O(SOL_SOCKET, SO_ZEROCOPY),
	O(IPPROTO_TCP, TCP_CC_INFO), O(IPPROTO_TCP, TCP_CONGESTION), O(IPPROTO_TCP, TCP_CORK),
	O(IPPROTO_TCP, TCP_DEFER_ACCEPT), O(IPPROTO_TCP, TCP_FASTOPEN), O(IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
	O(IPPROTO_TCP, TCP_INFO), O(IPPROTO_TCP, TCP_INQ), O(IPPROTO_TCP, TCP_KEEPCNT),
	O(IPPROTO_TCP, TCP_KEEPIDLE), O(IPPROTO_TCP, TCP_KEEPINTVL), O(IPPROTO_TCP, TCP_LINGER2),
	O(IPPROTO_TCP, TCP_MAXSEG), O(IPPROTO_TCP, TCP_MD5SIG), O(IPPROTO_TCP, TCP_NODELAY),
	O(IPPROTO_TCP, TCP_NOTSENT_LOWAT), O(IPPROTO_TCP, TCP_QUEUE_SEQ), O(IPPROTO_TCP, TCP_QUICKACK),
	O(IPPROTO_TCP, TCP_REPAIR), O(IPPROTO_TCP, TCP_REPAIR_OPTIONS), O(IPPROTO_TCP, TCP_REPAIR_QUEUE),
	O(IPPROTO_TCP, TCP_SAVED_SYN), O(IPPROTO_TCP, TCP_SAVE_SYN), O(IPPROTO_TCP, TCP_SYNCNT),
	O(IPPROTO_TCP, TCP_THIN_DUPACK), O(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS), O(IPPROTO_TCP, TCP_TIMESTAMP),
	O(IPPROTO_TCP, TCP_ULP), O(IPPROTO_TCP, TCP_USER_TIMEOUT), O(IPPROTO_TCP, TCP_WINDOW_CLAMP),
	O(IPPROTO_IP, IP_ADD_MEMBERSHIP), O(IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP),
	O(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT), O(IPPROTO_IP, IP_BLOCK_SOURCE), O(IPPROTO_IP, IP_DROP_MEMBERSHIP),
	O(IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP), O(IPPROTO_IP, IP_FREEBIND), O(IPPROTO_IP, IP_HDRINCL),
	O(IPPROTO_IP, IP_IPSEC_POLICY), O(IPPROTO_IP, IP_MINTTL), O(IPPROTO_IP, IP_MSFILTER),
	O(IPPROTO_IP, IP_MTU), O(IPPROTO_IP, IP_MTU_DISCOVER), O(IPPROTO_IP, IP_MULTICAST_ALL),
	O(IPPROTO_IP, IP_MULTICAST_IF), O(IPPROTO_IP, IP_MULTICAST_LOOP), O(IPPROTO_IP, IP_MULTICAST_TTL),
	O(IPPROTO_IP, IP_NODEFRAG), O(IPPROTO_IP, IP_OPTIONS), O(IPPROTO_IP, IP_PASSSEC),
	O(IPPROTO_IP, IP_PKTINFO), O(IPPROTO_IP, IP_RECVERR), O(IPPROTO_IP, IP_RECVFRAGSIZE),
	O(IPPROTO_IP, IP_RECVOPTS), O(IPPROTO_IP, IP_RECVORIGDSTADDR), O(IPPROTO_IP, IP_RECVTOS),
	O(IPPROTO_IP, IP_RECVTTL), O(IPPROTO_IP, IP_RETOPTS), O(IPPROTO_IP, IP_ROUTER_ALERT),
	O(IPPROTO_IP, IP_TOS), O(IPPROTO_IP, IP_TRANSPARENT), O(IPPROTO_IP, IP_TTL),
	O(IPPROTO_IP, IP_UNBLOCK_SOURCE), O(IPPROTO_IP, IP_UNICAST_IF), O(IPPROTO_IP, IP_XFRM_POLICY),
	O(IPPROTO_IP, MCAST_BLOCK_SOURCE), O(IPPROTO_IP, MCAST_JOIN_GROUP), O(IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP),
	O(IPPROTO_IP, MCAST_LEAVE_GROUP), O(IPPROTO_IP, MCAST_LEAVE_SOURCE_GROUP), O(IPPROTO_IP, MCAST_MSFILTER),
	O(IPPROTO_IP, MCAST_UNBLOCK_SOURCE),
	O(IPPROTO_IPV6, IPV6_ADDRFORM), O(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES),
	O(IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP), O(IPPROTO_IPV6, IPV6_AUTHHDR), O(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL),
	O(IPPROTO_IPV6, IPV6_CHECKSUM), O(IPPROTO_IPV6, IPV6_DONTFRAG), O(IPPROTO_IPV6, IPV6_DROP_MEMBERSHIP),
	O(IPPROTO_IPV6, IPV6_DSTOPTS), O(IPPROTO_IPV6, IPV6_FLOWINFO), O(IPPROTO_IPV6, IPV6_FLOWINFO_SEND),
	O(IPPROTO_IPV6, IPV6_FLOWLABEL_MGR), O(IPPROTO_IPV6, IPV6_FREEBIND), O(IPPROTO_IPV6, IPV6_HOPLIMIT),
	O(IPPROTO_IPV6, IPV6_HOPOPTS), O(IPPROTO_IPV6, IPV6_IPSEC_POLICY), O(IPPROTO_IPV6, IPV6_JOIN_ANYCAST),
	O(IPPROTO_IPV6, IPV6_LEAVE_ANYCAST), O(IPPROTO_IPV6, IPV6_MINHOPCOUNT), O(IPPROTO_IPV6, IPV6_MTU),
	O(IPPROTO_IPV6, IPV6_MTU_DISCOVER), O(IPPROTO_IPV6, IPV6_MULTICAST_ALL),
	O(IPPROTO_IPV6, IPV6_MULTICAST_HOPS), O(IPPROTO_IPV6, IPV6_MULTICAST_IF),
	O(IPPROTO_IPV6, IPV6_MULTICAST_LOOP), O(IPPROTO_IPV6, IPV6_NEXTHOP), O(IPPROTO_IPV6, IPV6_PATHMTU),
	O(IPPROTO_IPV6, IPV6_PKTINFO), O(IPPROTO_IPV6, IPV6_RECVDSTOPTS), O(IPPROTO_IPV6, IPV6_RECVERR),
	O(IPPROTO_IPV6, IPV6_RECVFRAGSIZE), O(IPPROTO_IPV6, IPV6_RECVHOPLIMIT), O(IPPROTO_IPV6, IPV6_RECVHOPOPTS),
	O(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR), O(IPPROTO_IPV6, IPV6_RECVPATHMTU),
	O(IPPROTO_IPV6, IPV6_RECVPKTINFO), O(IPPROTO_IPV6, IPV6_RECVRTHDR), O(IPPROTO_IPV6, IPV6_RECVTCLASS),
	O(IPPROTO_IPV6, IPV6_ROUTER_ALERT), O(IPPROTO_IPV6, IPV6_RTHDR), O(IPPROTO_IPV6, IPV6_RTHDRDSTOPTS),
	O(IPPROTO_IPV6, IPV6_TCLASS), O(IPPROTO_IPV6, IPV6_TRANSPARENT), O(IPPROTO_IPV6, IPV6_UNICAST_HOPS),
	O(IPPROTO_IPV6, IPV6_UNICAST_IF), O(IPPROTO_IPV6, IPV6_V6ONLY), O(IPPROTO_IPV6, IPV6_XFRM_POLICY),
	O(IPPROTO_UDP, UDP_CORK), O(IPPROTO_UDP, UDP_ENCAP), O(IPPROTO_UDP, UDP_GRO),
	O(IPPROTO_UDP, UDP_NO_CHECK6_RX), O(IPPROTO_UDP, UDP_NO_CHECK6_TX), O(IPPROTO_UDP, UDP_SEGMENT),
};

static void bind_to_us(int fd, int family)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = 0 };
	struct sockaddr_in6 b = { .sin6_family = AF_INET6, .sin6_port = 0 };
	inet_pton(AF_INET, "10.9.0.2", &a.sin_addr);
	inet_pton(AF_INET6, "fd09::2", &b.sin6_addr);
	if (family == AF_INET ? bind(fd, (void *)&a, sizeof a) : bind(fd, (void *)&b, sizeof b))
		perror("bind");
}

static int fresh(int family, int type)
{
	int fd = socket(family, type, 0);
	bind_to_us(fd, family);
	return fd;
}

/* What getsockopt says after the option was set to something else before bind; nothing if it cannot be. */
static void before(int family, int type, int level, int name)
{
	int fd = socket(family, type, 0), value = 0, other, got = 0;
	socklen_t length = sizeof value;
	int error = getsockopt(fd, level, name, &value, &length);
	other = value == 1 ? 0 : 1;
	if (error || length != sizeof value || setsockopt(fd, level, name, &other, sizeof other)) {
		printf(" before -");
	} else {
		bind_to_us(fd, family);
		getsockopt(fd, level, name, &got, &length);
		printf(" before %d", got);
	}
	close(fd);
}

static const char *outcome(int result)
{
	return result == 0 ? "ok" : strerrorname_np(errno);
}

/* Names of congestion controls, each set on a TCP socket and asked for; a line each. */
static int congestion(char **names)
{
	for (; *names; names++) {
		int fd = fresh(AF_INET, SOCK_STREAM);
		char value[16] = "";
		socklen_t length = sizeof value;
		printf("%s set %s", *names, outcome(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, *names, strlen(*names))));
		getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, value, &length);
		printf(" get %.16s %u\n", value, length);
		close(fd);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return congestion(argv + 1);
	static const struct {
		const char *text;
		int family, type;
	} sockets[] = { { "tcp4", AF_INET, SOCK_STREAM }, { "tcp6", AF_INET6, SOCK_STREAM },
			{ "udp4", AF_INET, SOCK_DGRAM }, { "udp6", AF_INET6, SOCK_DGRAM } };
	for (size_t s = 0; s < sizeof sockets / sizeof *sockets; s++)
		for (size_t o = 0; o < sizeof options / sizeof *options; o++) {
			int fd = fresh(sockets[s].family, sockets[s].type);
			char value[512] = "";
			socklen_t length = sizeof value;
			int level = options[o].level, name = options[o].name, one = 1;
			printf("%s %s", sockets[s].text, options[o].text);
			if (getsockopt(fd, level, name, value, &length) < 0) {
				printf(" get %s", strerrorname_np(errno));
				length = sizeof one;
			} else if (length == sizeof(int)) {
				printf(" get %d", *(int *)value);
			} else {
				printf(" get bytes");
			}
			printf(" default %s", outcome(setsockopt(fd, level, name, value, length)));
			printf(" 1 %s", outcome(setsockopt(fd, level, name, &one, sizeof one)));
			close(fd);
			before(sockets[s].family, sockets[s].type, level, name);
			putchar('\n');
		}
	return 0;
}
