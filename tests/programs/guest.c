/* guest.c: sockets, parser programs, traffic and trace lines of the lane programs. */
#include "guest.h"
#include <dirent.h>
#include <stdarg.h>

/* Long enough for a loaded emulated CPU; only a failing case waits it out. */
#define ARRIVAL_MS 4000
/* After the last expected byte, how long a surplus may take to show. */
#define SURPLUS_MS 10
/* Spacing of writes that must be parsed one by one, and how long it may stretch until the attached
 * end has nothing unread: the parser may be a thread that a busy machine starts late. */
#define SPACE_MS 10
#define TAKEN_MS 150
/* Between two looks at a descriptor that should become readable. */
#define LOOK_MS 2
#define WATCHED_MAX 256

volatile sig_atomic_t sigpipe_count;

static struct pollfd watched[WATCHED_MAX];
static size_t watched_count;
static struct pair pairs[WATCHED_MAX];
static size_t pair_count;

/* --- trace lines ------------------------------------------------------------------------- */

void say(const char *fmt, ...)
{
	va_list args;
	va_start(args, fmt);
	fputs("  ", stdout);
	vprintf(fmt, args);
	putchar('\n');
	fflush(stdout);
	va_end(args);
}

void lane_lacks(const char *what)
{
	say("[lane lacks: %s]", what);
	exit(0);
}

const char *errno_name(int error)
{
	static char number[16];
	const char *name = strerrorname_np(error);
	if (name)
		return name;
	snprintf(number, sizeof number, "%d", error);
	return number;
}

long report(const char *name, long value)
{
	int saved = errno;
	if (value == -1)
		say("%s = %s", name, errno_name(saved));
	else
		say("%s = %ld", name, value);
	errno = saved;
	return value;
}

int report_fd(const char *name, int fd)
{
	say("%s = %s", name, fd < 0 ? errno_name(errno) : "fd");
	return fd;
}

static uint32_t fnv1a(const unsigned char *data, size_t len)
{
	uint32_t hash = 2166136261u;
	for (size_t i = 0; i < len; i++)
		hash = (hash ^ data[i]) * 16777619u;
	return hash;
}

/* Appends at most limit characters of runs; returns how many data bytes it covered. */
static size_t runs(char *out, size_t limit, const unsigned char *data, size_t len)
{
	size_t i = 0, used = 0;
	*out = 0;
	while (i < len && used < limit) {
		size_t run = 1;
		char glyph[8];
		while (i + run < len && data[i + run] == data[i])
			run++;
		if (data[i] > ' ' && data[i] < 127)
			snprintf(glyph, sizeof glyph, "%c", data[i]);
		else
			snprintf(glyph, sizeof glyph, "\\%02x", data[i]);
		if (run >= 5)
			used += sprintf(out + used, "%s*%zu ", glyph, run), i += run;
		else
			used += sprintf(out + used, "%s", glyph), i++;
	}
	return i;
}

const char *bytes(const void *data, size_t len)
{
	static char text[128];
	size_t shown = runs(text, 64, data, len), end = strlen(text);
	if (end && text[end - 1] == ' ')
		text[--end] = 0;
	if (shown < len)
		sprintf(text + end, " .. hash %08x", fnv1a(data, len));
	return text;
}

struct bit {
	int value;
	const char *name;
};

static const char *bits(char *text, int value, const struct bit *table, size_t count)
{
	char *at = text;
	*at = 0;
	for (size_t i = 0; i < count; i++)
		if (value & table[i].value) {
			at += sprintf(at, "%s%s", at == text ? "" : "|", table[i].name);
			value &= ~table[i].value;
		}
	if (value)
		at += sprintf(at, "%s0x%x", at == text ? "" : "|", value);
	return at == text ? "0" : text;
}

const char *msg_flags(int flags)
{
	static char text[96];
	static const struct bit table[] = {
		{MSG_TRUNC, "TRUNC"}, {MSG_EOR, "EOR"}, {MSG_CTRUNC, "CTRUNC"}, {MSG_CMSG_CLOEXEC, "CMSG_CLOEXEC"}};
	return bits(text, flags, table, sizeof table / sizeof *table);
}

const char *poll_bits(int events)
{
	static char text[96];
	static const struct bit table[] = {
		{POLLIN, "IN"}, {POLLRDNORM, "RDNORM"}, {POLLPRI, "PRI"}, {POLLOUT, "OUT"},
		{POLLWRNORM, "WRNORM"}, {POLLWRBAND, "WRBAND"}, {POLLERR, "ERR"},
		{POLLHUP, "HUP"}, {POLLRDHUP, "RDHUP"}, {POLLNVAL, "NVAL"}};
	return bits(text, events, table, sizeof table / sizeof *table);
}

/* --- sockets ----------------------------------------------------------------------------- */

static int watch(int fd)
{
	if (fd >= 0 && watched_count < WATCHED_MAX)
		watched[watched_count++] = (struct pollfd){.fd = fd};
	return fd;
}

int kcm(int type)
{
	int fd = socket(AF_KCM, type, KCMPROTO_CONNECTED);
	if (fd < 0)
		say("socket(AF_KCM) = %s", errno_name(errno));
	return watch(fd);
}

int attach(int kcm_fd, int tcp_fd, int bpf_fd)
{
	int arg[2] = {tcp_fd, bpf_fd};
	return ioctl(kcm_fd, SIOCKCMATTACH, arg);
}

int unattach(int kcm_fd, int tcp_fd)
{
	return ioctl(kcm_fd, SIOCKCMUNATTACH, &tcp_fd);
}

int clone_kcm(int kcm_fd)
{
	int arg = -7;
	return ioctl(kcm_fd, SIOCKCMCLONE, &arg) ? -1 : watch(arg);
}

int on_stack(void)
{
	return getenv("GUEST_ADDRESS") != NULL;
}

socklen_t own_address(int family, void *addr)
{
	const char *given = getenv(family == AF_INET ? "GUEST_ADDRESS" : "GUEST_ADDRESS6");
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
	if (given && inet_pton(family, given, family == AF_INET ? (void *)&in.sin_addr : &in6.sin6_addr) != 1)
		say("%s is no address", given);
	return family == AF_INET ? (memcpy(addr, &in, sizeof in), sizeof in) : (memcpy(addr, &in6, sizeof in6), sizeof in6);
}

static struct pair make_pair(int family, int small)
{
	struct sockaddr_storage addr;
	socklen_t len = own_address(family, &addr);
	struct pair made;
	int listener = socket(family, SOCK_STREAM, 0);
	if (small)
		set_int(listener, SOL_SOCKET, SO_RCVBUF, 1);
	if (bind(listener, (void *)&addr, len) || listen(listener, 1) || getsockname(listener, (void *)&addr, &len))
		say("listen = %s", errno_name(errno));
	made.a = socket(family, SOCK_STREAM, 0);
	if (small)
		set_int(made.a, SOL_SOCKET, SO_SNDBUF, 1);
	if (connect(made.a, (void *)&addr, len))
		say("connect = %s", errno_name(errno));
	made.p = accept(listener, NULL, NULL);
	close(listener);
	set_int(made.a, IPPROTO_TCP, TCP_NODELAY, 1);
	set_int(made.p, IPPROTO_TCP, TCP_NODELAY, 1);
	pairs[pair_count++ % WATCHED_MAX] = made;
	return made;
}

struct pair pair(void)
{
	return make_pair(AF_INET, 0);
}

struct pair pair6(void)
{
	return make_pair(AF_INET6, 0);
}

struct pair pair_small(void)
{
	return make_pair(AF_INET, 1);
}

static struct pair attach_made(struct pair made, int kcm_fd, int bpf_fd)
{
	if (attach(kcm_fd, made.a, bpf_fd))
		say("attach = %s", errno_name(errno));
	return made;
}

struct pair attached(int kcm_fd, int bpf_fd)
{
	return attach_made(pair(), kcm_fd, bpf_fd);
}

struct pair attached_small(int kcm_fd, int bpf_fd)
{
	return attach_made(pair_small(), kcm_fd, bpf_fd);
}

void reset(int fd)
{
	struct linger hard = {.l_onoff = 1};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	close(fd);
}

int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof value);
}

int get_int(int fd, int level, int name)
{
	int value = 0;
	socklen_t len = sizeof value;
	return getsockopt(fd, level, name, &value, &len) ? -1 : value;
}

int set_timeout(int fd, int name, int ms)
{
	struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
	return setsockopt(fd, SOL_SOCKET, name, &tv, sizeof tv);
}

int recv_disable(int kcm_fd, int on)
{
	return set_int(kcm_fd, SOL_KCM, KCM_RECV_DISABLE, on);
}

int take_so_error(int fd)
{
	return get_int(fd, SOL_SOCKET, SO_ERROR);
}

void so_error(const char *name, int fd)
{
	int value = take_so_error(fd);
	say("SO_ERROR(%s) = %s", name, value ? errno_name(value) : "0");
}

void polls(const char *name, int fd)
{
	const int all = POLLIN | POLLRDNORM | POLLPRI | POLLOUT | POLLWRNORM | POLLWRBAND | POLLRDHUP;
	struct pollfd p = {.fd = fd, .events = all};
	if (poll(&p, 1, 0) < 0)
		say("poll(%s) = %s", name, errno_name(errno));
	else
		say("poll(%s) = %s", name, poll_bits(p.revents));
}

/* --- parser programs --------------------------------------------------------------------- */

int load_typed(enum bpf_prog_type type, const struct bpf_insn *insns, size_t count)
{
	static char log[4096];
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.prog_type = type;
	attr.insns = (uintptr_t)insns;
	attr.insn_cnt = count;
	attr.license = (uintptr_t)"GPL";
	attr.log_buf = (uintptr_t)log;
	attr.log_size = sizeof log;
	attr.log_level = 1;
	return syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
}

static int loaded(int fd)
{
	if (fd < 0)
		say("BPF_PROG_LOAD = %s", errno_name(errno));
	return fd;
}

int prog_p4(void)
{
	const struct bpf_insn insns[] = {MOV_R(6, 1), LD_ABS_W(0), ADD_I(0, 4), EXIT};
	return loaded(LOAD(insns));
}

int prog_raw(void)
{
	const struct bpf_insn insns[] = {MOV_R(6, 1), LD_ABS_W(0), EXIT};
	return loaded(LOAD(insns));
}

int prog_const(int value)
{
	const struct bpf_insn insns[] = {MOV_I(0, value), EXIT};
	return loaded(LOAD(insns));
}

int prog_len(void)
{
	const struct bpf_insn insns[] = {LD_CTX(0, 1, offsetof(struct __sk_buff, len)), EXIT};
	return loaded(LOAD(insns));
}

int prog_load_bytes(void)
{
	const struct bpf_insn insns[] = {
		MOV_I(2, 0), MOV_R(3, 10), ADD_I(3, -8), MOV_I(4, 4), CALL(BPF_FUNC_skb_load_bytes),
		JEQ_I(0, 0, 2), MOV_I(0, 0), EXIT, LDX_B(0, 10, -8 + 3), EXIT};
	return loaded(LOAD(insns));
}

/* --- traffic ----------------------------------------------------------------------------- */

void nap(int ms)
{
	/* A KCM socket never has an error or a hang-up, so asking for nothing waits out the time. */
	for (long end = now_ms() + ms, left = ms; left > 0; left = end - now_ms())
		if (poll(watched, watched_count, left) > 0)
			for (size_t i = 0; i < watched_count; i++)
				if (watched[i].revents)
					watched[i].fd = -1; /* Closed, or the number is another file's now. */
}

int ready(int fd, int events, int ms)
{
	struct pollfd p = {.fd = fd, .events = events};
	return poll(&p, 1, ms) > 0 ? p.revents : 0;
}

size_t p4(void *to, size_t payload, char c)
{
	uint32_t header = htonl(payload);
	memcpy(to, &header, sizeof header);
	memset((char *)to + sizeof header, c, payload);
	return sizeof header + payload;
}

/* What the other end of `peer` has received and nobody has taken. */
static int unread_beyond(int peer)
{
	int unread = 0;
	for (size_t i = 0; i < pair_count && i < WATCHED_MAX; i++)
		if (pairs[i].p == peer && ioctl(pairs[i].a, FIONREAD, &unread))
			unread = 0;
	return unread;
}

void put(int peer, const void *data, size_t len)
{
	ssize_t wrote = write(peer, data, len);
	if (wrote != (ssize_t)len)
		say("peer write = %zd %s", wrote, wrote < 0 ? errno_name(errno) : "short");
	nap(SPACE_MS);
	for (long end = now_ms() + TAKEN_MS; unread_beyond(peer) > 0 && now_ms() < end;)
		nap(SPACE_MS);
}

void msg(int peer, size_t payload, char c)
{
	char *data = malloc(payload + 4);
	put(peer, data, p4(data, payload, c));
	free(data);
}

static int receive(int fd, size_t cap, int flags)
{
	char *buf = calloc(1, cap + 1);
	struct iovec iov = {buf, cap};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	int got = recvmsg(fd, &m, flags | DW);
	if (got < 0)
		say("recvmsg(%zu) = %s", cap, errno_name(errno));
	else
		say("recvmsg(%zu) = %d %s%s%s", cap, got, msg_flags(m.msg_flags), got ? " " : "", bytes(buf, got));
	free(buf);
	return got;
}

int rx(int fd, size_t cap, int flags)
{
	ready(fd, POLLIN, ARRIVAL_MS);
	return receive(fd, cap, flags);
}

int rx_none(int fd)
{
	nap(SURPLUS_MS);
	return receive(fd, 100, 0);
}

void letters(const char *name, int fd, int count)
{
	char text[256], buf[4096];
	int seen = 0;
	while (seen < (int)sizeof text - 1) {
		if (seen < count)
			ready(fd, POLLIN, ARRIVAL_MS);
		ssize_t got = recv(fd, buf, sizeof buf, DW);
		if (got < 0)
			break;
		text[seen++] = got > 4 ? buf[4] : '?';
	}
	text[seen] = 0;
	say("%s holds %s", name, seen ? text : "nothing");
}

size_t collect(int fd, void *buf, size_t cap, size_t want)
{
	size_t total = 0;
	if (!want)
		nap(2 * SURPLUS_MS);
	for (long last = now_ms(); total < cap;) {
		ssize_t got = recv(fd, (char *)buf + total, cap - total, DW);
		if (got > 0) {
			total += got;
			last = now_ms();
			continue;
		}
		if (got == 0 || errno != EAGAIN)
			break;
		if (now_ms() - last > (total < want ? ARRIVAL_MS : SURPLUS_MS))
			break;
		nap(LOOK_MS);
	}
	return total;
}

size_t drain_as(const char *name, int fd, size_t want)
{
	static char buf[1 << 21];
	size_t total = collect(fd, buf, sizeof buf, want);
	if (total)
		say("%s got %zu %s", name, total, bytes(buf, total));
	else
		say("%s got nothing", name);
	return total;
}

void fill(void *data, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		((unsigned char *)data)[i] = ((i + seed) * 2654435761u) >> 13;
}

int filled(const void *data, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		if (((const unsigned char *)data)[i] != (unsigned char)(((i + seed) * 2654435761u) >> 13))
			return 0;
	return 1;
}

/* --- time, signals, threads -------------------------------------------------------------- */

long now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int in_range(long value, long low, long high)
{
	return value >= low && value <= high;
}

static void ignore(int sig)
{
	(void)sig;
}

/* Signals go on until the call that they should interrupt is over: the first may come too early. */
#define SIGNALS_MAX 40
static volatile sig_atomic_t signalled_calls;

struct interruption {
	int ms, call;
};

static void *interrupt_later(void *arg)
{
	struct interruption *of = arg;
	for (int i = 0; i < SIGNALS_MAX; i++) {
		usleep(of->ms * 1000);
		if (signalled_calls != of->call)
			break;
		/* The main thread must be the one that is interrupted. */
		syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1);
	}
	free(of);
	return NULL;
}

void signal_after(int ms, int sa_flags)
{
	struct sigaction act = {.sa_handler = ignore, .sa_flags = sa_flags};
	struct interruption *of = malloc(sizeof *of);
	*of = (struct interruption){.ms = ms, .call = signalled_calls};
	sigaction(SIGUSR1, &act, NULL);
	spawn(interrupt_later, of);
}

void signal_over(void)
{
	signalled_calls++;
}

pthread_t spawn(void *(*body)(void *), void *arg)
{
	pthread_t thread;
	pthread_create(&thread, NULL, body, arg);
	return thread;
}

int open_fd_count(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}
