/* What a program sees of a network that fails, on the kernel's stack or on the one in its process.
 *
 *   stack_faults serve ADDRESS BYTES              takes BYTES of each connection, then gives as many
 *   stack_faults stall ADDRESS BYTES              takes so many, and no more
 *   stack_faults leave ADDRESS BYTES              gives as many once its input ends, and ends
 *   stack_faults transfer ADDRESS BYTES TIMEOUT   the other end, with TCP_USER_TIMEOUT in ms; says "under way"
 *   stack_faults unreachable ADDRESS              connects to an address where nobody is
 *   stack_faults full ADDRESS                     accepts without a descriptor to spare, then with one
 *   stack_faults dial ADDRESS                     one connection for it
 *   stack_faults flood ADDRESS / swallow ADDRESS  sends what the other does not read, and how much it keeps */
#include "check.h"

enum { TRANSFER = 7300, FULL, FLOOD, PIECE = 50000, UNDER_WAY = 2 << 20, KEPT_MAX = 24 << 20 };

static struct sockaddr_in at(const char *ip, int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	CHECK(inet_pton(AF_INET, ip, &a.sin_addr) == 1);
	return a;
}

static int listener(const char *ip, int port)
{
	struct sockaddr_in a = at(ip, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	CHECK(bind(fd, (void *)&a, sizeof a) == 0 && listen(fd, 8) == 0);
	puts("listening");
	fflush(stdout);
	return fd;
}

static int dial(const char *ip, int port)
{
	struct sockaddr_in a = at(ip, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(connect(fd, (void *)&a, sizeof a) == 0);
	return fd;
}

/* Piece number i of a stream. Both ends know it. */
static size_t piece(char *to, long i, long total, unsigned seed)
{
	long left = total - i * PIECE;
	size_t length = left < PIECE ? left : PIECE;
	fill(to, length, seed + (unsigned)i);
	return length;
}

/* 0, or the errno. */
static int give(int fd, long total, unsigned seed, int tells)
{
	char buf[PIECE];
	for (long i = 0; i * PIECE < total; i++) {
		size_t length = piece(buf, i, total, seed), done = 0;
		for (ssize_t n; done < length; done += n)
			if ((n = send(fd, buf + done, length - done, MSG_NOSIGNAL)) < 0)
				return errno;
		if (tells && i == UNDER_WAY / PIECE) {
			puts("under way");
			fflush(stdout);
		}
	}
	return 0;
}

/* 0, or the errno; EPROTO for wrong bytes or a wrong number of them. */
static int take(int fd, long total, unsigned seed)
{
	char got[PIECE], want[PIECE];
	for (long i = 0; i * PIECE < total; i++) {
		size_t length = piece(want, i, total, seed);
		/* MSG_WAITALL would end early where the process is stopped and goes on. */
		ssize_t n = 1;
		for (size_t done = 0; done < length && n > 0; done += n)
			if ((n = recv(fd, got + done, length - done, 0)) < 0)
				return errno;
		if (n == 0 || memcmp(got, want, length))
			return EPROTO;
	}
	return 0;
}

static void serve(const char *ip, long total)
{
	int s = listener(ip, TRANSFER);
	for (int fd; (fd = accept(s, NULL, NULL)) >= 0; close(fd))
		if (take(fd, total, 1) == 0)
			give(fd, total, 7, 0);
}

static void stall(const char *ip, long total)
{
	int fd = accept(listener(ip, TRANSFER), NULL, NULL);
	CHECK(take(fd, total, 1) == 0);
	say("took all");
	pause();
}

static void leave(const char *ip, long total)
{
	int fd = dial(ip, TRANSFER);
	char byte;
	say("connected");
	CHECK(read(0, &byte, 1) == 0 && give(fd, total, 1, 0) == 0);
}

static void transfer(const char *ip, long total, int timeout)
{
	int fd = dial(ip, TRANSFER);
	long began = now_ms();
	CHECK(set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, timeout) == 0);
	int error = give(fd, total, 1, 1);
	say("gave %s", error ? errno_name(error) : "all");
	if (!error) {
		error = take(fd, total, 7);
		say("took %s", error ? errno_name(error) : "all");
	}
	/* Waiting costs no processor time to speak of. */
	if (error && clock() / (CLOCKS_PER_SEC / 1000) > (now_ms() - began) / 2)
		say("busy");
}

static void unreachable(const char *ip)
{
	struct sockaddr_in a = at(ip, 7);
	int fd = socket(AF_INET, SOCK_STREAM, 0), error = 0;
	long began = now_ms();
	R(connect(fd, (void *)&a, sizeof a));
	/* Three questions, a second apart. */
	say("not before 1.5 s: %d", now_ms() - began >= 1500);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	R(connect(fd, (void *)&a, sizeof a));
	say("ready %s", poll_bits(ready(fd, POLLIN | POLLOUT, -1)));
	error = take_so_error(fd);
	say("error %s", errno_name(error));
}

static void full(const char *ip)
{
	struct rlimit limit = {3, 3};
	int s = listener(ip, FULL), last = dup(s);
	char c;
	close(last);
	getrlimit(RLIMIT_NOFILE, &limit);
	CHECK(ready(s, POLLIN, -1) == POLLIN);
	limit.rlim_cur = last;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	R(accept(s, NULL, NULL));
	R(accept(s, NULL, NULL));
	say("still ready %s", poll_bits(ready(s, POLLIN, -1)));
	limit.rlim_cur = limit.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	int fd = accept(s, NULL, NULL);
	say("accepted %d", fd >= 0);
	R(recv(fd, &c, 1, 0));
}

static long resident_kib(void)
{
	char line[256];
	long kib = -1;
	FILE *status = fopen("/proc/self/status", "r");
	while (fgets(line, sizeof line, status))
		sscanf(line, "VmRSS: %ld", &kib);
	fclose(status);
	return kib;
}

/* Sends until nothing has been taken for a while. */
static void flood(const char *ip)
{
	static char buf[1 << 20];
	int fd = dial(ip, FLOOD);
	while (ready(fd, POLLOUT, 1000) && send(fd, buf, sizeof buf, DW | MSG_NOSIGNAL) > 0)
		;
	say("over");
	pause();
}

static void swallow(const char *ip)
{
	int s = listener(ip, FLOOD), fd = accept(s, NULL, NULL), queued = 0, before = -1;
	long began = resident_kib();
	CHECK(fd >= 0 && ready(fd, POLLIN, -1));
	for (; queued != before; usleep(700 * 1000)) {
		before = queued;
		CHECK(ioctl(fd, FIONREAD, &queued) == 0);
	}
	say("some queued %d, bounded %d %d", queued > 0, queued < KEPT_MAX, (resident_kib() - began) * 1024 < 2 * KEPT_MAX);
}

int main(int argc, char **argv)
{
	CHECK(argc >= 3);
	const char *mode = argv[1], *ip = argv[2];
	hang_guard(mode);
	if (!strcmp(mode, "serve"))
		serve(ip, atol(argv[3]));
	else if (!strcmp(mode, "stall"))
		stall(ip, atol(argv[3]));
	else if (!strcmp(mode, "leave"))
		leave(ip, atol(argv[3]));
	else if (!strcmp(mode, "transfer"))
		transfer(ip, atol(argv[3]), atoi(argv[4]));
	else if (!strcmp(mode, "unreachable"))
		unreachable(ip);
	else if (!strcmp(mode, "full"))
		full(ip);
	else if (!strcmp(mode, "dial"))
		CHECK(send(dial(ip, FULL), "x", 1, 0) == 1 && pause());
	else if (!strcmp(mode, "flood"))
		flood(ip);
	else
		swallow(ip);
	return 0;
}
