/* fuzz_calls.c: random calls, with hostile arguments, on descriptors of every kind.
 *
 *     fuzz_calls kcm|plain SEED OPERATIONS
 *
 * With "kcm" some of the descriptors are KCM sockets and TCP sockets attached to them; with "plain"
 * sockets that the kernel has stand in their place, so that every number means the same. What is
 * printed are the results on all other descriptors: it must not depend on the word, nor on the
 * library being there. */
#include "check.h"

#include <sys/eventfd.h>
#include <sys/select.h>

enum kind { NOTHING, PIPE, EVENT, UNIX, TCP, EPOLL, KCM, ATTACHED, PARSER };

#define FDS 64      /* numbers the program works with */
#define FIRST 3     /* the lowest of them */
#define OBJECTS 8192
#define REGION 65536 /* bytes of memory of each sort */

static int with_kcm, program_fd, in_child;
static uint64_t state;
static int object_of[FDS]; /* 0: not open */
static struct {
	enum kind kind;
	int tainted; /* an epoll set that holds what is not compared */
} objects[OBJECTS];
static int object_count = 1;
static char *good, *own, *readonly; /* memory of each sort */
static unsigned step;

static uint32_t below(uint32_t bound)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32) % bound;
}

static enum kind kind_of(int fd)
{
	return fd >= 0 && fd < FDS ? objects[object_of[fd]].kind : NOTHING;
}

/* Whether what a call on the descriptor answers is the same with and without KCM. */
static int compared(int fd)
{
	return kind_of(fd) < KCM;
}

static int fresh(int fd, int object)
{
	if (fd >= FDS) {
		close(fd);
		return -1;
	}
	if (fd >= 0)
		object_of[fd] = object;
	return fd;
}

static int object(enum kind kind)
{
	CHECK(object_count < OBJECTS);
	objects[object_count].kind = kind;
	return object_count++;
}

static void say_result(const char *call, int fd, long result, int error)
{
	printf("%u %s(%d) = %ld %s\n", step, call, fd, result, result == -1 ? errno_name(error) : "");
}

/* What a call on fd answered, if it is to be compared. */
static void result_of(const char *call, int fd, long result)
{
	int error = errno;
	if (compared(fd))
		say_result(call, fd, result, error);
}

/* Data on TCP comes when it comes: only calls that move none are compared. */
static void moved(const char *call, int fd, long result)
{
	if (kind_of(fd) != TCP)
		result_of(call, fd, result);
}

/* --- hostile values ---------------------------------------------------------------------- */

static void *memory(int fd)
{
	int shown = compared(fd) && kind_of(fd) != TCP;
	switch (below(10)) {
	case 0: return NULL;
	case 1: return BAD_PTR;
	case 2: return readonly;
	case 3: return (shown ? good : own) + REGION - below(64);
	case 4: return (void *)-4096L;
	case 5: return (void *)0x0000deadbeef0000L;
	default: return shown ? good : own;
	}
}

static size_t length(void)
{
	static const size_t lengths[] = {0, 1, 4, 7, 8, 9, 16, 63, 64, 100};
	static const size_t wild[] = {4096, 65536, 1 << 20, (size_t)1 << 31, (size_t)1 << 47, (size_t)-1, (size_t)1 << 63};
	return below(8) ? lengths[below(10)] : wild[below(7)];
}

/* As length(), but no more than what memory there is behind an address of ours. */
static size_t fitting(const void *at)
{
	size_t len = length();
	int ours = at == good || at == own || at == readonly;
	return ours && len > REGION && len < (size_t)1 << 47 ? REGION : len;
}

static int number(void)
{
	return below(20) ? FIRST + (int)below(40) : (int[]){-1, 9999, INT32_MAX, INT32_MIN}[below(4)];
}

static int flags(void)
{
	static const int known[] = {0, MSG_PEEK, MSG_TRUNC, MSG_MORE, MSG_EOR, MSG_OOB, MSG_ERRQUEUE, MSG_BATCH};
	return MSG_DONTWAIT | MSG_NOSIGNAL | known[below(8)] | (below(8) ? 0 : known[below(8)]);
}

static struct iovec vector[2][4];

static struct iovec *vectors(int fd)
{
	struct iovec *these = vector[compared(fd)];
	for (int i = 0; i < 4; i++) {
		these[i].iov_base = memory(fd);
		these[i].iov_len = fitting(these[i].iov_base);
		if (these[i].iov_len > 65536 && below(4))
			these[i].iov_len = 8;
	}
	return below(16) ? these : memory(fd);
}

static int count(void)
{
	return below(8) ? (int)below(5) : (int[]){-1, 1025, INT32_MAX, INT32_MIN}[below(4)];
}

static struct mmsghdr *messages(int fd)
{
	static struct mmsghdr all[2][4];
	struct mmsghdr *these = all[compared(fd)];
	for (int i = 0; i < 4; i++) {
		these[i].msg_hdr = (struct msghdr){.msg_iov = vectors(fd), .msg_iovlen = below(5)};
		if (below(8) == 0)
			these[i].msg_hdr.msg_iovlen = (size_t)(ssize_t)count();
		if (below(6) == 0) {
			these[i].msg_hdr.msg_name = memory(fd);
			these[i].msg_hdr.msg_namelen = (socklen_t)length();
		}
		if (below(6) == 0) {
			these[i].msg_hdr.msg_control = memory(fd);
			these[i].msg_hdr.msg_controllen = length() & 63;
			memset(own, 0, 64); /* a control message of no kind */
			memset(good, 0, 64);
		}
	}
	return below(16) ? these : memory(fd);
}

/* --- operations -------------------------------------------------------------------------- */

static void make(void)
{
	int ends[2], made;
	switch (below(8)) {
	case 0:
		if (pipe2(ends, O_NONBLOCK) == 0) {
			int of = object(PIPE);
			fresh(ends[0], of);
			fresh(ends[1], object(PIPE));
		}
		break;
	case 1: fresh(eventfd(below(3), EFD_NONBLOCK), object(EVENT)); break;
	case 2:
		if (socketpair(AF_UNIX, below(2) ? SOCK_STREAM : SOCK_SEQPACKET, 0, ends) == 0) {
			for (int i = 0; i < 2; i++) {
				fcntl(ends[i], F_SETFL, O_NONBLOCK);
				fresh(ends[i], object(UNIX));
			}
		}
		break;
	case 3: fresh(epoll_create1(0), object(EPOLL)); break;
	case 4: fresh(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), object(TCP)); break;
	case 5:
	case 6:
		made = with_kcm ? socket(AF_KCM, (below(2) ? SOCK_DGRAM : SOCK_SEQPACKET) | SOCK_NONBLOCK, 0)
		                : (below(2), socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0));
		fresh(made, object(KCM));
		break;
	case 7: { /* a connection, one end of which is attached */
		struct pair both = pair();
		if (both.a >= FDS || both.p >= FDS) {
			close(both.a);
			close(both.p);
			break;
		}
		fcntl(both.a, F_SETFL, O_NONBLOCK);
		fcntl(both.p, F_SETFL, O_NONBLOCK);
		fresh(both.a, object(ATTACHED));
		fresh(both.p, object(ATTACHED));
		break;
	}
	}
}

static void kcm_requests(int fd)
{
	int arg[2] = {number(), below(2) ? program_fd : number()};
	for (int tries = 0; tries < 16 && kind_of(fd) == KCM && kind_of(arg[0]) != ATTACHED; tries++)
		arg[0] = number();
	if (kind_of(fd) != KCM && kind_of(arg[0]) == TCP)
		return;
	void *at = below(4) ? arg : memory(fd);
	switch (below(3)) {
	case 0:
		/* Plain TCP sockets keep out of it. */
		if (at == arg && kind_of(fd) == KCM && kind_of(arg[0]) != ATTACHED)
			break;
		result_of("attach", fd, ioctl(fd, SIOCKCMATTACH, at));
		break;
	case 1: result_of("unattach", fd, ioctl(fd, SIOCKCMUNATTACH, at)); break;
	case 2: {
		if (kind_of(fd) != KCM) {
			result_of("clone", fd, ioctl(fd, SIOCKCMCLONE, at));
			break;
		}
		int made = with_kcm ? clone_kcm(fd) : socket(AF_UNIX, SOCK_SEQPACKET, 0);
		if (made >= 0)
			fcntl(made, F_SETFL, O_NONBLOCK);
		fresh(made, object(KCM));
		break;
	}
	}
}

static void options(int fd)
{
	static const int levels[] = {SOL_SOCKET, SOL_KCM, IPPROTO_TCP, IPPROTO_IP, -1};
	static const int names[] = {SO_TYPE, SO_ERROR, SO_RCVLOWAT, SO_PEEK_OFF, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, KCM_RECV_DISABLE, 0, -1, 9999};
	int level = levels[below(5)], name = names[below(11)];
	socklen_t len = (socklen_t)length();
	void *value = memory(fd), *len_at = below(8) ? &len : memory(fd);
	if (len_at != &len && (len_at == good || len_at == own))
		memset(len_at, 0, 4);
	if (len > 65536 && (int)len > 0)
		len = 4;
	if (below(2))
		result_of("getsockopt", fd, getsockopt(fd, level, name, value, len_at));
	else if (level != IPPROTO_TCP && level != IPPROTO_IP && name != SO_TYPE)
		result_of("setsockopt", fd, setsockopt(fd, level, name, value, len));
}

static void addresses(int fd)
{
	socklen_t len = (socklen_t)(length() & 127), *len_at = below(6) ? &len : memory(fd);
	void *at = memory(fd);
	if (len_at == (void *)good || len_at == (void *)own)
		*len_at = 0;
	for (char *base = good; base; base = base == good ? own : NULL) {
		size_t from = (char *)at - base;
		if (from < REGION) /* a family that nobody has */
			memset(at, 0xff, REGION - from < 128 ? REGION - from : 128);
	}
	switch (below(7)) {
	case 0: result_of("bind", fd, bind(fd, at, len)); break;
	case 1: result_of("connect", fd, connect(fd, at, len)); break;
	case 2: result_of("getsockname", fd, getsockname(fd, at, len_at)); break;
	case 3: result_of("getpeername", fd, getpeername(fd, at, len_at)); break;
	case 4: result_of("listen", fd, kind_of(fd) == TCP ? 0 : listen(fd, (int)below(5) - 1)); break;
	case 5: result_of("accept", fd, accept4(fd, at, len_at, (int)below(2))); break;
	case 6: result_of("shutdown", fd, shutdown(fd, below(4) ? 77 : (int)below(3))); break;
	}
}

static void transfers(int fd)
{
	void *at = memory(fd);
	size_t len = fitting(at);
	switch (below(14)) {
	case 0: moved("read", fd, read(fd, at, len)); break;
	case 1: moved("write", fd, write(fd, at, len)); break;
	case 2: moved("readv", fd, readv(fd, vectors(fd), count())); break;
	case 3: moved("writev", fd, writev(fd, vectors(fd), count())); break;
	case 4: moved("preadv2", fd, preadv2(fd, vectors(fd), count(), (off_t)below(3) - 1, 0)); break;
	case 5: moved("pwritev2", fd, pwritev2(fd, vectors(fd), count(), (off_t)below(3) - 1, 0)); break;
	case 6: moved("send", fd, send(fd, at, len, flags())); break;
	case 7: moved("recv", fd, recv(fd, at, len, flags())); break;
	case 8: moved("sendmsg", fd, sendmsg(fd, &messages(fd)->msg_hdr, flags())); break;
	case 9: moved("recvmsg", fd, recvmsg(fd, &messages(fd)->msg_hdr, flags())); break;
	case 10: moved("sendmmsg", fd, sendmmsg(fd, messages(fd), below(5), flags())); break;
	case 11: moved("recvmmsg", fd, recvmmsg(fd, messages(fd), below(5), flags(), NULL)); break;
	case 12: moved("raw read", fd, syscall(SYS_read, fd, at, len)); break;
	case 13: moved("raw recvfrom", fd, syscall(SYS_recvfrom, fd, at, len, flags(), NULL, NULL)); break;
	}
}

static void between(int from)
{
	int to = number();
	long result;
	const char *call;
	size_t len = below(100);
	/* What is compared gets nothing from what is not, nor at its own time. */
	if (compared(from) != compared(to) || (kind_of(from) == TCP) != (kind_of(to) == TCP))
		return;
	switch (below(4)) {
	case 0: call = "splice"; result = splice(from, memory(from), to, NULL, len, SPLICE_F_NONBLOCK); break;
	case 1: call = "splice"; result = splice(from, NULL, to, NULL, len, SPLICE_F_NONBLOCK); break;
	case 2: call = "tee"; result = tee(from, to, len, SPLICE_F_NONBLOCK); break;
	default: call = "sendfile"; result = sendfile(to, from, memory(from), len); break;
	}
	moved(call, from, result);
}

static void copies(int fd)
{
	int onto = FIRST + 1 + (int)below(40), made;
	if (onto == program_fd || fd == program_fd)
		return;
	switch (below(6)) {
	case 0: made = dup(fd); break;
	case 1: made = dup2(fd, onto); break;
	case 2: made = dup3(fd, onto, below(3) ? O_CLOEXEC : 77); break;
	case 3: made = fcntl(fd, F_DUPFD, (int)below(50) - 2); break;
	case 4: made = fcntl(fd, F_DUPFD_CLOEXEC, (int)below(50)); break;
	default: made = (int)syscall(SYS_dup3, fd, onto, 0); break;
	}
	say_result("dup", fd, made, errno);
	fresh(made, fd >= 0 && fd < FDS ? object_of[fd] : 0);
}

static void closes(int fd)
{
	if (fd == program_fd)
		return;
	if (below(12) == 0 && fd >= 0 && fd < FDS - 4 && (program_fd < fd || program_fd > fd + 2)) {
		long done = close_range((unsigned)fd, (unsigned)fd + 2, 0);
		say_result("close_range", fd, done, errno);
		object_of[fd] = object_of[fd + 1] = object_of[fd + 2] = 0;
		return;
	}
	long done = close(fd);
	say_result("close", fd, done, errno);
	if (fd >= 0 && fd < FDS)
		object_of[fd] = 0;
}

static int by_tag(const void *a, const void *b)
{
	uint32_t x = ((const struct epoll_event *)a)->data.u32, y = ((const struct epoll_event *)b)->data.u32;
	return x < y ? -1 : x > y;
}

static void sets(int fd)
{
	static const uint32_t wanted[] = {EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLET, EPOLLIN | EPOLLOUT | EPOLLONESHOT, 0};
	struct epoll_event event = {.events = wanted[below(6)]}, events[64];
	if (below(3)) {
		int member = number(), op = below(8) ? 1 + (int)below(3) : 77;
		int of = member >= 0 && member < FDS ? object_of[member] : 0;
		event.data.u32 = (uint32_t)of;
		void *at = below(12) ? &event : memory(fd);
		if (at == good || at == own)
			memcpy(at, &event, sizeof event);
		if (kind_of(fd) == EPOLL && (kind_of(member) == TCP || kind_of(member) == EPOLL))
			return; /* whose readiness depends on time, or on sets that are not compared */
		long done = epoll_ctl(fd, op, member, at);
		int error = errno;
		if (compared(fd) && compared(member))
			say_result("epoll_ctl", fd, done, error);
		if (kind_of(fd) == EPOLL && !compared(member))
			objects[object_of[fd]].tainted = 1;
		return;
	}
	int room = below(8) ? 64 : (int)below(3) - 2;
	long ready = epoll_wait(fd, below(10) ? events : BAD_PTR, room, 0);
	if (ready < 0 || kind_of(fd) != EPOLL) {
		if (kind_of(fd) != EPOLL || !objects[object_of[fd]].tainted)
			result_of("epoll_wait", fd, ready);
		return;
	}
	qsort(events, (size_t)ready, sizeof *events, by_tag);
	for (long i = 0; i < ready; i++) {
		enum kind kind = objects[events[i].data.u32 % OBJECTS].kind;
		if (kind < KCM)
			printf("%u epoll %u %x\n", step, events[i].data.u32, events[i].events);
	}
}

static int comes_by_time(int fd)
{
	return !compared(fd) || kind_of(fd) == TCP || kind_of(fd) == EPOLL;
}

static void waits(void)
{
	struct pollfd entries[6];
	unsigned some = below(7);
	for (unsigned i = 0; i < some; i++)
		entries[i] = (struct pollfd){.fd = number(), .events = (short)below(0x40)};
	switch (below(4)) {
	case 0: {
		fd_set set[3];
		struct timeval now = {0};
		for (int i = 0; i < 3; i++)
			FD_ZERO(&set[i]);
		for (unsigned i = 0; i < some; i++)
			if (entries[i].fd >= 0 && entries[i].fd < FDS)
				FD_SET(entries[i].fd, &set[i % 3]);
		if (select(FDS, &set[0], &set[1], &set[2], &now) < 0) {
			printf("%u select %s\n", step, errno_name(errno));
			return;
		}
		for (int fd = 0; fd < FDS; fd++)
			if (!comes_by_time(fd))
				printf("%d", FD_ISSET(fd, &set[0]) | FD_ISSET(fd, &set[1]) << 1 | FD_ISSET(fd, &set[2]) << 2);
		putchar('\n');
		return;
	}
	case 1: {
		struct timespec now = {0, below(4) ? 0 : -1};
		if (ppoll(entries, some, &now, NULL) < 0)
			printf("%u ppoll %s\n", step, errno_name(errno));
		break;
	}
	case 2: {
		void *volatile nowhere = below(2) ? NULL : BAD_PTR; /* the compiler would see it */
		long done = poll(nowhere, 1 + below(3), 0);
		say_result("poll", -1, done, errno);
		return;
	}
	default: poll(entries, some, 0); break;
	}
	for (unsigned i = 0; i < some; i++)
		if (!comes_by_time(entries[i].fd))
			printf("%u poll %d %x\n", step, entries[i].fd, entries[i].revents);
}

static void requests(int fd)
{
	static const unsigned long known[] = {FIONREAD, TIOCOUTQ, FIOCLEX, FIONCLEX, 0x8905 /* SIOCATMARK */, 0x12345678, 0};
	unsigned long request = known[below(7)];
	void *at = memory(fd);
	if (kind_of(fd) == TCP && (request == FIONREAD || request == TIOCOUTQ))
		return;
	result_of("ioctl", fd, below(2) ? ioctl(fd, request, at) : syscall(SYS_ioctl, fd, request, at));
	static const int commands[] = {F_GETFL, F_GETFD, F_GETOWN, 9999};
	int command = commands[below(4)];
	result_of("fcntl", fd, fcntl(fd, command, 0) & ~O_LARGEFILE);
}

static void parser_calls(void)
{
	static const int commands[] = {0, 1, 2, 3, 4, 5, 10, 15, 22, 77};
	union bpf_attr attr;
	for (size_t i = 0; i < sizeof attr / 4; i++)
		((uint32_t *)&attr)[i] = below(3) ? below(12) : (uint32_t)number();
	if (below(2))
		attr.insns = attr.value = (uintptr_t)memory(program_fd);
	int made = (int)syscall(SYS_bpf, commands[below(10)], below(8) ? (void *)&attr : BAD_PTR, length() & 255);
	if (made > 2)
		close(made);
}

static void one_call(void);

/* A child goes on for a few calls with copies of all descriptors; what it does with what both share
 * is done before we go on. Closes, duplicates and new descriptors of its are its own. It leaves KCM
 * sockets alone: what another process asks of them is answered by a thread of ours, which takes a
 * number now and then (section L of the lane programs has such children). */
static void family(void)
{
	int status;
	fflush(stdout);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		hang_guard("a child of fuzz_calls");
		in_child = 1;
		for (unsigned end = step + 8; step < end; step++)
			one_call();
		fflush(stdout);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	printf("%u child %x\n", step, (unsigned)status);
}

static void one_call(void)
{
	int fd = number(), what = below(20);
	if (in_child && !compared(fd))
		return;
	switch (what) {
	case 0: case 1: make(); break;
	case 2: kcm_requests(fd); break;
	case 3: options(fd); break;
	case 4: addresses(fd); break;
	case 5: case 6: case 7: case 8: case 9: transfers(fd); break;
	case 10: between(fd); break;
	case 11: copies(fd); break;
	case 12: closes(fd); break;
	case 13: case 14: case 15:
		if (!in_child)
			sets(fd); /* a set is both's, what is known of its members is not */
		break;
	case 16: case 17:
		if (!in_child)
			waits();
		break;
	case 18: requests(fd); break;
	case 19: parser_calls(); break;
	}
}

/* Memory that ends where it ends: nobody maps anything right behind it. */
static char *region(int rights)
{
	char *at = mmap(NULL, REGION + 4096, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED && mprotect(at + REGION, 4096, PROT_NONE) == 0);
	return at;
}

int main(int argc, char **argv)
{
	CHECK(argc == 4);
	hang_guard("fuzz_calls");
	signal(SIGPIPE, SIG_IGN);
	with_kcm = strcmp(argv[1], "kcm") == 0;
	state = 0x9e3779b97f4a7c15ULL * (strtoull(argv[2], NULL, 10) + 1);
	good = region(PROT_READ | PROT_WRITE);
	own = region(PROT_READ | PROT_WRITE);
	readonly = region(PROT_READ);
	close_range(3, FDS, 0);
	program_fd = with_kcm ? prog_const(8) : open("/dev/null", O_RDONLY);
	CHECK(program_fd == FIRST);
	object_of[program_fd] = object(PARSER);
	for (unsigned operations = (unsigned)atoi(argv[3]); step < operations; step++) {
		if (below(150) == 0)
			family();
		else
			one_call();
	}
	return 0;
}
