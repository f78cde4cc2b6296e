/* Section B: ioctls, above all the order in which attach and unattach check things. */
#include "guest.h"
#include <linux/sockios.h>

static void bad_pointers(int type)
{
	int k = kcm(type), before = open_fd_count();
	R(ioctl(k, SIOCKCMATTACH, BAD_PTR));
	R(ioctl(k, SIOCKCMUNATTACH, BAD_PTR));
	R(ioctl(k, SIOCKCMCLONE, BAD_PTR));
	say("open descriptors changed by %d", open_fd_count() - before);
}

static void attach_not_a_socket(int type)
{
	int k = kcm(type), b = prog_p4(), ends[2];
	int path = open("/", O_PATH);
	if (pipe(ends))
		return;
	R(attach(k, -1, b));
	R(attach(k, 999, b));
	R(attach(k, ends[0], b));
	R(attach(k, path, b));
	R(attach(k, -1, -1));
}

static void attach_bad_program(int type)
{
	int k = kcm(type);
	struct pair t = pair();
	R(attach(k, t.a, -1));
	R(attach(k, t.a, 999));
}

static int array_map(void)
{
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = attr.value_size = 4;
	attr.max_entries = 1;
	return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}

static void attach_not_a_program(int type)
{
	int k = kcm(type), ends[2], map = array_map();
	struct pair t = pair();
	if (pipe(ends))
		return;
	R(attach(k, t.a, ends[0]));
	R(attach(k, t.a, t.p));
	say("map = %s", map < 0 ? errno_name(errno) : "fd");
	R(attach(k, t.a, map));
}

static void attach_other_program_types(int type)
{
	static const struct {
		enum bpf_prog_type type;
		const char *name;
	} types[] = {
		{BPF_PROG_TYPE_XDP, "XDP"}, {BPF_PROG_TYPE_SCHED_CLS, "SCHED_CLS"}, {BPF_PROG_TYPE_SK_SKB, "SK_SKB"},
		{BPF_PROG_TYPE_CGROUP_SKB, "CGROUP_SKB"}, {BPF_PROG_TYPE_TRACEPOINT, "TRACEPOINT"}};
	const struct bpf_insn insns[] = {MOV_I(0, 0), EXIT};
	int k = kcm(type);
	struct pair t = pair();
	for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
		int prog = load_typed(types[i].type, insns, 2);
		if (prog < 0 && (errno == EPERM || errno == ENOSYS))
			lane_lacks("privilege to load other program types");
		RL(types[i].name, attach(k, t.a, prog));
	}
}

static void attach_wrong_sockets(int type)
{
	int k = kcm(type), b = prog_p4(), ends[2];
	int udp = socket(AF_INET, SOCK_DGRAM, 0), fresh = socket(AF_INET, SOCK_STREAM, 0);
	int listener = socket(AF_INET, SOCK_STREAM, 0), other = kcm(type);
	listen(listener, 1);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		return;
	R(attach(k, udp, b));
	R(attach(k, ends[0], b));
	R(attach(k, other, b));
	R(attach(k, k, b));
	R(attach(k, fresh, b));
	R(attach(k, listener, b));
}

static void program_before_socket_kind(int type)
{
	int k = kcm(type), udp = socket(AF_INET, SOCK_DGRAM, 0), fresh = socket(AF_INET, SOCK_STREAM, 0);
	R(attach(k, udp, -1));
	R(attach(k, fresh, -1));
}

static void attach_reset(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = pair();
	reset(t.p);
	ready(t.a, POLLIN, 1000);
	R(attach(k, t.a, b));
}

static void attach_twice(int type)
{
	int k = kcm(type), b = prog_p4(), k2 = kcm(type);
	struct pair t = attached(k, b);
	int c = clone_kcm(k);
	R(attach(k, t.a, b));
	R(attach(c, t.a, b));
	R(attach(k2, t.a, b));
}

static void attached_bad_program(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	R(attach(k, t.a, -1));
}

static void unattach_other_mux(int type)
{
	int k = kcm(type), k2 = kcm(type);
	struct pair t = attached(k, prog_p4());
	R(unattach(k2, t.a));
}

static void unattach_strangers(int type)
{
	int k = kcm(type), ends[2];
	struct pair t = pair();
	if (pipe(ends))
		return;
	R(unattach(k, -1));
	R(unattach(k, ends[0]));
	R(unattach(k, t.a));
	R(unattach(k, k));
}

static void unattach_dup(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	int d = dup(t.a);
	R(unattach(k, d));
	R(unattach(k, t.a));
}

static void unattach_by_clone(int type)
{
	int k = kcm(type);
	struct pair t = attached(k, prog_p4());
	int c = clone_kcm(k);
	R(unattach(c, t.a));
}

static void reattach(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = attached(k, b);
	R(unattach(k, t.a));
	R(attach(k, t.a, b));
	msg(t.p, 8, 'a');
	rx(k, 100, 0);
	R(write(k, "hello", 5));
	drain(t.p, 5);
}

static void unknown_private_ioctls(int type)
{
	int k = kcm(type);
	char ifreq[64] = {0};
	R(ioctl(k, 0x89E3, ifreq));
	R(ioctl(k, 0x89EF, ifreq));
	R(ioctl(k, 0x89E3, BAD_PTR));
	R(ioctl(k, 0x89EF, BAD_PTR));
}

static void queue_ioctls(int type)
{
	int k = kcm(type), value = 0;
	struct pair t = attached(k, prog_p4());
	msg(t.p, 8, 'a');
	R(ioctl(k, FIONREAD, &value));
	R(ioctl(k, SIOCOUTQ, &value));
	R(ioctl(k, SIOCATMARK, &value));
	R(ioctl(k, 0x1234, &value));
}

static void fionbio(int type)
{
	int k = kcm(type), on = 1;
	R(ioctl(k, FIONBIO, &on));
	say("O_NONBLOCK: %d", !!(fcntl(k, F_GETFL) & O_NONBLOCK));
}

static void kcm_ioctls_elsewhere(int type)
{
	int ends[2], arg[2] = {0, 0};
	struct pair t = pair();
	int udp = socket(AF_INET, SOCK_DGRAM, 0);
	(void)type;
	if (pipe(ends))
		return;
	for (int number = SIOCKCMATTACH; number <= SIOCKCMCLONE; number++) {
		say("number %x", number);
		R(ioctl(t.a, number, arg));
		R(ioctl(udp, number, arg));
		R(ioctl(ends[0], number, arg));
	}
}

static long sysctl_value(const char *path)
{
	long value = -1;
	FILE *f = fopen(path, "r");
	if (!f || fscanf(f, "%ld", &value) != 1)
		value = -1;
	if (f)
		fclose(f);
	return value;
}

static void clone_inherits(int type)
{
	int k = socket(AF_KCM, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	set_int(k, SOL_SOCKET, SO_RCVBUF, 9999);
	recv_disable(k, 1);
	int c = FD(clone_kcm(k));
	R(fcntl(c, F_GETFD));
	say("F_GETFL is O_RDWR alone: %d", (fcntl(c, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDWR);
	R(get_int(c, SOL_SOCKET, SO_TYPE));
	int fresh = get_int(c, SOL_SOCKET, SO_RCVBUF);
	say("SO_RCVBUF is rmem_default: %d", fresh == sysctl_value("/proc/sys/net/core/rmem_default") || fresh == 212992);
	R(get_int(c, SOL_KCM, KCM_RECV_DISABLE));
}

static void clone_input(int type)
{
	int k = kcm(type), arg = -7;
	R(ioctl(k, SIOCKCMCLONE, &arg));
	say("fd >= 0: %d", arg >= 0);
}

static void program_closed(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = attached(k, b);
	close(b);
	msg(t.p, 8, 'a');
	rx(k, 100, 0);
}

static void one_program_two_pairs(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = attached(k, b), u = attached(k, b);
	msg(t.p, 8, 't');
	rx(k, 100, 0);
	msg(u.p, 8, 'u');
	rx(k, 100, 0);
}

static int tcp_state(int fd)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof info;
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) ? -1 : info.tcpi_state;
}

static void attach_syn_sent(int type)
{
	int k = kcm(type), b = prog_p4(), fd = -1;
	struct sockaddr_in addr;
	socklen_t len = own_address(AF_INET, &addr);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	bind(listener, (void *)&addr, len);
	listen(listener, 0);
	getsockname(listener, (void *)&addr, &len);
	for (int tries = 0; tries < 8; tries++) {
		fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		connect(fd, (void *)&addr, len);
		usleep(5000);
		if (tcp_state(fd) == TCP_SYN_SENT)
			break;
	}
	say("SYN_SENT: %d", tcp_state(fd) == TCP_SYN_SENT);
	R(attach(k, fd, b));
}

static void attach_close_wait(int type)
{
	int k = kcm(type), b = prog_p4();
	struct pair t = pair();
	msg(t.p, 8, 'a');
	shutdown(t.p, SHUT_WR);
	nap(10);
	say("CLOSE_WAIT: %d", tcp_state(t.a) == TCP_CLOSE_WAIT);
	R(attach(k, t.a, b));
	rx(k, 100, 0);
	SO_ERR(t.a);
	R(write(k, "hello", 5));
	drain(t.p, 5);
}

static void attach_ipv6(int type)
{
	int k = kcm(type), probe = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 addr;
	socklen_t len = own_address(AF_INET6, &addr);
	if (probe < 0 || bind(probe, (void *)&addr, len))
		lane_lacks("IPv6 loopback");
	struct pair t = pair6();
	R(attach(k, t.a, prog_p4()));
}

static void attach_mptcp(int type)
{
	int k = kcm(type), fd = socket(AF_INET, SOCK_STREAM, 262);
	if (fd < 0)
		lane_lacks("MPTCP");
	R(attach(k, fd, prog_p4()));
}

static int sockmap(void)
{
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.map_type = BPF_MAP_TYPE_SOCKMAP;
	attr.key_size = attr.value_size = 4;
	attr.max_entries = 2;
	return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}

static int sockmap_add(int map, uint32_t key, uint32_t fd)
{
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.map_fd = map;
	attr.key = (uintptr_t)&key;
	attr.value = (uintptr_t)&fd;
	return syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof attr);
}

static void attach_in_sockmap(int type)
{
	int k = kcm(type), map = sockmap(), b = prog_p4();
	struct pair t = pair(), u = attached(k, b);
	if (map < 0)
		lane_lacks("privilege to create a sockmap");
	R(sockmap_add(map, 0, t.a));
	R(attach(k, t.a, b));
	R(sockmap_add(map, 1, u.a));
}

static void clone_compat(int type)
{
#ifdef __x86_64__
	int k = kcm(type);
	int *arg = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	int number = 54; /* ioctl of the 32-bit table */
	int result = number;
	__asm__ volatile("int $0x80"
		: "+a"(result)
		: "b"(k), "c"(SIOCKCMCLONE), "d"((int)(intptr_t)arg)
		: "memory", "r8", "r9", "r10", "r11");
	say("int 0x80 ioctl(k, SIOCKCMCLONE) = %s", result < 0 ? errno_name(-result) : "ok");
#else
	(void)type;
	lane_lacks("32-bit entry");
#endif
}

static const struct kcm_case cases[] = {
	{"B01", S, ONCE, bad_pointers},
	{"B02", S, ONCE, attach_not_a_socket},
	{"B03", S, ONCE, attach_bad_program},
	{"B04", S, ONCE, attach_not_a_program},
	{"B05", S, ONCE, attach_other_program_types},
	{"B06", S, ONCE, attach_wrong_sockets},
	{"B07", S, ONCE, program_before_socket_kind},
	{"B08", S, ONCE, attach_reset},
	{"B09", S, ONCE, attach_twice},
	{"B10", S, ONCE, attached_bad_program},
	{"B11", S, ONCE, unattach_other_mux},
	{"B12", S, ONCE, unattach_strangers},
	{"B13", S, ONCE, unattach_dup},
	{"B14", S, ONCE, unattach_by_clone},
	{"B15", S, BOTH, reattach},
	{"B16", S, ONCE, unknown_private_ioctls},
	{"B17", S, ONCE, queue_ioctls},
	{"B18", S, ONCE, fionbio},
	{"B19", S, ONCE, kcm_ioctls_elsewhere},
	{"B20", S, BOTH, clone_inherits},
	{"B21", S, ONCE, clone_input},
	{"B22", S, ONCE, program_closed},
	{"B23", S, ONCE, one_program_two_pairs},
	{"B24", T, ONCE, attach_syn_sent},
	{"B25", S, ONCE, attach_close_wait},
	{"B26", S, ONCE, attach_ipv6},
	{"B27", S, ONCE, attach_mptcp},
	{"B28", Q, ONCE, attach_in_sockmap},
	{"B29", Q, ONCE, clone_compat},
};
GUEST_MAIN(cases)
