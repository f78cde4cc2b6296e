/* Section A: creation, and the generic calls that a KCM socket answers or refuses. */
#include "guest.h"

static void fresh_sockets(int type)
{
	(void)type;
	FD(socket(AF_KCM, SOCK_DGRAM, 0));
	FD(socket(AF_KCM, SOCK_SEQPACKET, 0));
}

static void wrong_types(int type)
{
	(void)type;
	FD(socket(AF_KCM, SOCK_STREAM, 0));
	FD(socket(AF_KCM, SOCK_RAW, 0));
	FD(socket(AF_KCM, SOCK_RDM, 0));
	FD(socket(AF_KCM, 10, 0));
	FD(socket(AF_KCM, 0, 0));
}

static void type_bits(int type)
{
	(void)type;
	FD(socket(AF_KCM, 11, 0));
	FD(socket(AF_KCM, 15, 0));
	FD(socket(AF_KCM, SOCK_DGRAM | 0x10, 0));
	FD(socket(AF_KCM, SOCK_DGRAM | 0x10000, 0));
}

static void wrong_protocol(int type)
{
	(void)type;
	FD(socket(AF_KCM, SOCK_DGRAM, 1));
	FD(socket(AF_KCM, SOCK_DGRAM, IPPROTO_TCP));
	FD(socket(AF_KCM, SOCK_DGRAM, -1));
}

static void type_before_protocol(int type)
{
	(void)type;
	FD(socket(AF_KCM, SOCK_STREAM, 1));
}

static void creation_flags(int type)
{
	(void)type;
	int k = socket(AF_KCM, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	say("F_GETFL is O_RDWR|O_NONBLOCK: %d", (fcntl(k, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK));
	R(fcntl(k, F_GETFD));
}

static void option_values(int type)
{
	static const struct {
		int name;
		const char *text;
	} options[] = {
		{SO_TYPE, "SO_TYPE"}, {SO_DOMAIN, "SO_DOMAIN"}, {SO_PROTOCOL, "SO_PROTOCOL"},
		{SO_ERROR, "SO_ERROR"}, {SO_ACCEPTCONN, "SO_ACCEPTCONN"}, {SO_RCVLOWAT, "SO_RCVLOWAT"}};
	int k = kcm(type);
	for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
		int value = -1;
		socklen_t len = sizeof value;
		int r = getsockopt(k, SOL_SOCKET, options[i].name, &value, &len);
		say("%s: %s value %d length %u", options[i].text, r ? errno_name(errno) : "ok", value, len);
	}
}

static void option_get_errors(int type)
{
	int k = kcm(type);
	char buf[128];
	socklen_t len = sizeof buf;
	R(getsockopt(k, SOL_SOCKET, SO_PEERNAME, buf, &len));
	len = sizeof buf;
	R(getsockopt(k, SOL_SOCKET, SO_PEERGROUPS, buf, &len));
	len = sizeof buf;
	R(getsockopt(k, SOL_SOCKET, SO_PEEK_OFF, buf, &len));
}

static void buffer_sizes(int type)
{
	int k = kcm(type);
	R(set_int(k, SOL_SOCKET, SO_RCVBUF, 4096));
	R(get_int(k, SOL_SOCKET, SO_RCVBUF));
	R(set_int(k, SOL_SOCKET, SO_RCVBUF, 1));
	R(get_int(k, SOL_SOCKET, SO_RCVBUF));
	R(set_int(k, SOL_SOCKET, SO_SNDBUF, 1));
	R(get_int(k, SOL_SOCKET, SO_SNDBUF));
}

static void option_set_errors(int type)
{
	int k = kcm(type);
	R(set_int(k, SOL_SOCKET, SO_PEEK_OFF, 1));
	R(set_int(k, SOL_SOCKET, SO_ZEROCOPY, 1));
	R(set_int(k, SOL_SOCKET, SO_REUSEPORT, 1));
	R(set_int(k, SOL_SOCKET, 9999, 1));
}

static void bind_connect(int type)
{
	int k = kcm(type);
	char raw[1024] = {0};
	struct sockaddr *addr = (void *)raw;
	addr->sa_family = AF_INET;
	R(bind(k, addr, sizeof(struct sockaddr_in)));
	R(bind(k, addr, 0));
	R(bind(k, addr, 1000));
	R(bind(k, addr, -1));
	R(bind(k, BAD_PTR, 16));
	R(connect(k, addr, sizeof(struct sockaddr_in)));
	R(connect(k, addr, 0));
	R(connect(k, addr, 1000));
	R(connect(k, addr, -1));
	R(connect(k, BAD_PTR, 16));
}

static void listen_accept(int type)
{
	int k = kcm(type);
	R(listen(k, 1));
	R(accept(k, NULL, NULL));
	R(accept4(k, NULL, NULL, 0x1));
}

static void names(int type)
{
	int k = kcm(type);
	struct sockaddr_storage addr;
	socklen_t len = sizeof addr;
	R(getsockname(k, (struct sockaddr *)&addr, &len));
	R(getpeername(k, (struct sockaddr *)&addr, &len));
	R(getsockname(k, BAD_PTR, BAD_PTR));
	R(getpeername(k, BAD_PTR, BAD_PTR));
}

static void shutdowns(int type)
{
	int k = kcm(type);
	R(shutdown(k, SHUT_RD));
	R(shutdown(k, SHUT_RDWR));
	R(shutdown(k, 7));
	R(shutdown(k, -1));
}

static void socketpairs(int type)
{
	(void)type;
	int ends[2];
	R(socketpair(AF_KCM, SOCK_DGRAM, 0, ends));
	R(socketpair(AF_KCM, SOCK_SEQPACKET, 0, ends));
	R(socketpair(AF_KCM, SOCK_STREAM, 0, ends));
	R(socketpair(AF_KCM, SOCK_DGRAM, 1, ends));
}

static void file_calls(int type)
{
	int k = kcm(type);
	char c;
	say("mmap = %s", mmap(NULL, 4096, PROT_READ, MAP_SHARED, k, 0) == MAP_FAILED ? errno_name(errno) : "mapped");
	R(lseek(k, 0, SEEK_SET));
	R(pread(k, &c, 1, 0));
	R(fsync(k));
	R(ftruncate(k, 0));
	R(fallocate(k, 0, 0, 1));
}

static void descriptor_limit(int type)
{
	(void)type;
	int k = kcm(SOCK_DGRAM), next = dup(0);
	close(next);
	struct rlimit limit = {next, next};
	R(setrlimit(RLIMIT_NOFILE, &limit));
	FD(socket(AF_KCM, SOCK_DGRAM, 0));
	FD(clone_kcm(k));
}

static void ordinary_user(int type)
{
	(void)type;
	int prog = prog_p4();
	struct pair t = pair();
	/* A lane that runs as an ordinary user is where the case wants to be. */
	if (geteuid() == 0 && setuid(65534))
		lane_lacks("setuid");
	say("user is root: %d", geteuid() == 0);
	int k = FD(kcm(SOCK_DGRAM));
	R(attach(k, t.a, prog));
}

static const struct kcm_case cases[] = {
	{"A01", S, ONCE, fresh_sockets},
	{"A02", S, ONCE, wrong_types},
	{"A03", S, ONCE, type_bits},
	{"A04", S, ONCE, wrong_protocol},
	{"A05", S, ONCE, type_before_protocol},
	{"A06", S, ONCE, creation_flags},
	{"A07", S, BOTH, option_values},
	{"A08", S, BOTH, option_get_errors},
	{"A09", S, BOTH, buffer_sizes},
	{"A10", S, BOTH, option_set_errors},
	{"A11", S, BOTH, bind_connect},
	{"A12", S, BOTH, listen_accept},
	{"A13", S, BOTH, names},
	{"A14", S, BOTH, shutdowns},
	{"A15", S, ONCE, socketpairs},
	{"A16", S, BOTH, file_calls},
	{"A17", S, ONCE, descriptor_limit},
	{"A18", S, ONCE, ordinary_user},
};
GUEST_MAIN(cases)
