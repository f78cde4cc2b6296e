/* The numbers that a program's descriptors get: the lowest that are free, whatever the library holds open.
 *
 *   stack_numbers peer ADDRESS        echoes; ends when its standard input does
 *   stack_numbers all PEER OWN        runs every scenario in a process of its own, and prints what each saw
 *   stack_numbers NAME PEER OWN       one of them
 *   stack_numbers sleeper PEER        connects, leaves a forked child asleep, and ends by itself
 *   stack_numbers echo PEER           connects, and is answered
 *   stack_numbers shows PEER          connects, and executes a program that lists its descriptors
 *
 * PEER may be "-": then nobody is there but the program itself. The same program runs on the kernel's
 * sockets and on the stack's, and prints the same. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PORT = 7001, OWN_PORT = 7002 };
/* Where what is printed goes in scenarios that close the lowest numbers: the library's are far above, in the
 * upper quarter of LIMIT. */
enum { ASIDE = 200, LIMIT = 1024, LOW_LIMIT = 64 };

static const char *peer_address, *own_address;
static int out = 1;

static void say(const char *format, ...)
{
	char line[512];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	if (write(out, line, length) != length)
		_exit(3);
}

static void check(int holds, const char *what)
{
	if (!holds) {
		say("%s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static struct sockaddr_in at(const char *ip, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	check(inet_pton(AF_INET, ip, &a.sin_addr) == 1, "address");
	return a;
}

/* ---- the peer ---- */

static void *echoes(void *arg)
{
	int fd = (int)(long)arg;
	char bytes[256];
	ssize_t n;
	while ((n = read(fd, bytes, sizeof bytes)) > 0)
		if (send(fd, bytes, n, MSG_NOSIGNAL) != n)
			break;
	close(fd);
	return NULL;
}

static void *accepts(void *arg)
{
	for (;;) {
		long fd = accept((int)(long)arg, NULL, NULL);
		pthread_t thread;
		check(fd >= 0 && !pthread_create(&thread, NULL, echoes, (void *)fd), "accept");
		pthread_detach(thread);
	}
	return NULL;
}

static int listener(const char *ip, int port)
{
	struct sockaddr_in a = at(ip, port);
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	check(s >= 0 && !bind(s, (void *)&a, sizeof a) && !listen(s, 16), "listen");
	return s;
}

static void serve(void)
{
	pthread_t thread;
	long s = listener(peer_address, PORT);
	check(!pthread_create(&thread, NULL, accepts, (void *)s), "thread");
	say("ready\n");
	while (read(0, (char[1]){ 0 }, 1) > 0)
		;
}

/* ---- connections ---- */

static int dialled(const char *ip, int port)
{
	struct sockaddr_in a = at(ip, port);
	int s = socket(AF_INET, SOCK_STREAM, 0);
	check(s >= 0, "socket");
	check(!connect(s, (void *)&a, sizeof a), "connect");
	return s;
}

/* A connection, and its other end where the program has it: -1 where a peer does. */
struct conn {
	int here, there;
};

static struct conn dial(void)
{
	if (strcmp(peer_address, "-"))
		return (struct conn){ dialled(peer_address, PORT), -1 };
	struct conn c = { -1, -1 };
	int door = listener(own_address, OWN_PORT + 1);
	c.here = dialled(own_address, OWN_PORT + 1);
	c.there = accept(door, NULL, NULL);
	check(c.there >= 0, "accept");
	close(door);
	return c;
}

/* Both ways, so that nothing is left to be done when the program ends, and the next one has the device. */
static void hang_up(struct conn c)
{
	shutdown(c.here, SHUT_WR);
	if (c.there >= 0)
		shutdown(c.there, SHUT_WR);
	while (read(c.here, (char[16]){ 0 }, 16) > 0)
		;
	close(c.here);
	if (c.there >= 0)
		close(c.there);
}

static void answered(const char *who, struct conn c)
{
	char bytes[16] = { 0 };
	check(send(c.here, "ping", 4, MSG_NOSIGNAL) == 4, who);
	if (c.there >= 0) {
		check(recv(c.there, bytes, 4, MSG_WAITALL) == 4, who);
		check(send(c.there, bytes, 4, MSG_NOSIGNAL) == 4, who);
	}
	check(recv(c.here, bytes, 4, MSG_WAITALL) == 4 && !memcmp(bytes, "ping", 4), who);
	say("  %s: answered\n", who);
}

/* ---- what is looked at ---- */

/* The numbers that are open, as fcntl, fstat and /proc show them. Those of the library are no higher than the
 * limit, and /proc shows them: it is read as far as `end`. */
static void survey(int end)
{
	say("  open by fcntl:");
	for (int fd = 0; fd < LIMIT * 2; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			say(" %d", fd);
	struct stat st;
	say("\n  by fstat:");
	for (int fd = 0; fd < end; fd++)
		if (!fstat(fd, &st))
			say(" %d", fd);
	say("\n  by /proc:");
	DIR *all = opendir("/proc/self/fd");
	check(all != NULL, "opendir");
	char is_open[LIMIT] = { 0 };
	for (struct dirent *e; (e = readdir(all));)
		if (e->d_name[0] != '.' && atoi(e->d_name) < end)
			is_open[atoi(e->d_name)] = 1;
	closedir(all);
	for (int fd = 0; fd < end; fd++)
		if (is_open[fd])
			say(" %d", fd);
	say("\n");
}

/* One descriptor of each kind, made one after the other, and made again when some are closed. */
static void numbers(void)
{
	int pair[2], s[16], n = 0, hole;
	s[n++] = open("/dev/null", O_RDWR);
	s[n++] = socket(AF_INET, SOCK_STREAM, 0);
	s[n++] = socket(AF_INET, SOCK_DGRAM, 0);
	s[n++] = dup(s[0]);
	check(!pipe(pair), "pipe");
	s[n++] = pair[0];
	s[n++] = pair[1];
	s[n++] = epoll_create1(0);
	s[n++] = eventfd(0, 0);
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	s[n++] = pair[0];
	s[n++] = pair[1];
	s[n++] = fcntl(s[0], F_DUPFD, 3);
	say("  made:");
	for (int i = 0; i < n; i++)
		say(" %d", s[i]);
	/* Holes are filled from below, by calls that the stack serves too. */
	hole = s[1];
	close(hole);
	struct sockaddr_in a = at(own_address, OWN_PORT);
	s[1] = listener(own_address, OWN_PORT);
	close(s[2]);
	s[2] = socket(AF_INET, SOCK_STREAM, 0);
	check(!connect(s[2], (void *)&a, sizeof a), "connect to oneself");
	close(s[3]);
	s[3] = accept(s[1], NULL, NULL);
	close(s[0]);
	s[0] = socket(AF_INET, SOCK_DGRAM, 0);
	a.sin_port = htons(OWN_PORT + 2);
	check(!bind(s[0], (void *)&a, sizeof a), "bind");
	say("; again: %d %d %d %d\n", s[1], s[2], s[3], s[0]);
	struct epoll_event event = { .events = EPOLLIN };
	check(!epoll_ctl(s[6], EPOLL_CTL_ADD, s[3], &event), "epoll_ctl");
	check(send(s[2], "x", 1, 0) == 1 && epoll_wait(s[6], &event, 1, 5000) == 1, "epoll_wait");
	/* What it took to wait has left the numbers as they were. */
	int next = open("/dev/null", O_RDWR);
	say("  next: %d", next);
	close(next);
	for (int i = n - 1; i >= 0; i--)
		close(s[i]);
	next = open("/dev/null", O_RDWR);
	say(", in the end: %d\n", next);
	close(next);
}

static void around(const char *what, struct conn c)
{
	say(" %s\n", what);
	numbers();
	answered("the connection", c);
	struct conn another = dial();
	say("  another: %d\n", another.here);
	answered("the other", another);
	hang_up(another);
}

/* All there is to see, and the end of the connection. */
static void lastly(const char *what, struct conn c)
{
	around(what, c);
	survey(LIMIT / 2);
	hang_up(c);
}

/* ---- scenarios ---- */

static void plain(void)
{
	survey(LIMIT / 2);
	numbers();
	struct conn c = dial();
	say("  connected: %d\n", c.here);
	lastly("with the stack open", c);
}

static void aside(void)
{
	check(fcntl(1, F_DUPFD, ASIDE) == ASIDE, "aside");
	out = ASIDE;
}

static void no_stdin(void)
{
	close(0);
	struct conn c = dial();
	say("  connected: %d\n", c.here);
	int second = open("/dev/null", O_RDONLY);
	say("  second: %d\n", second);
	close(second);
	lastly("without standard input", c);
	close(0);
	int first = open("/dev/null", O_RDONLY);
	say("  first: %d\n", first);
}

static void none_of_three(void)
{
	aside();
	close(0), close(1), close(2);
	struct conn c = dial();
	say("  connected: %d\n", c.here);
	lastly("without any of three", c);
}

static void late_none_of_three(void)
{
	struct conn c = dial();
	aside();
	close(0), close(1), close(2);
	lastly("the three closed", c);
}

static void after_sweep(const char *what)
{
	survey(LIMIT / 2);
	struct conn c = dial();
	say("  connected: %d\n", c.here);
	lastly(what, c);
}

static void by_closefrom(void)
{
	dial();
	closefrom(3);
	after_sweep("after closefrom");
	closefrom(3);
	closefrom(3);
	after_sweep("after two more");
}

static void by_close_range(void)
{
	dial();
	say("  %d\n", close_range(3, ~0U, 0));
	after_sweep("after close_range");
}

static void unshared(void)
{
	dial();
	say("  %d\n", close_range(3, ~0U, CLOSE_RANGE_UNSHARE));
	after_sweep("after close_range in a table of its own");
}

static void by_cloexec(void)
{
	struct conn c = dial();
	say("  %d\n", close_range(3, ~0U, CLOSE_RANGE_CLOEXEC));
	say("  FD_CLOEXEC: %d\n", fcntl(c.here, F_GETFD));
	lastly("after close_range for exec", c);
}

static void one_by_one(void)
{
	dial();
	int closed = 0;
	for (int fd = 3; fd < 65536; fd++)
		closed += !close(fd);
	say("  closed %d\n", closed);
	after_sweep("after a sweep");
}

static void by_daemon(void)
{
	aside();
	struct conn c = dial();
	hang_up(c);
	check(!daemon(1, 0), "daemon");
	after_sweep("as a daemon");
}

static void onto_all(void)
{
	struct conn c = dial();
	aside();
	check(dup2(c.here, ASIDE + 1) == ASIDE + 1, "dup2");
	c.here = ASIDE + 1;
	if (c.there >= 0) {
		check(dup2(c.there, ASIDE + 2) == ASIDE + 2, "dup2");
		c.there = ASIDE + 2;
	}
	int null = open("/dev/null", O_RDWR), refused = 0;
	check(dup2(null, ASIDE + 3) == ASIDE + 3, "dup2");
	for (int fd = 0; fd < LOW_LIMIT; fd++)
		refused += dup2(ASIDE + 3, fd) != fd;
	say("  refused %d\n", refused);
	lastly("the lowest taken", c);
}

static void lower_limit(void)
{
	struct rlimit limit = { LOW_LIMIT, LOW_LIMIT };
	check(!setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
}

static void early_limit(void)
{
	lower_limit();
	struct conn c = dial();
	say("  connected: %d\n", c.here);
	around("under a low limit", c);
	survey(LOW_LIMIT / 2);
	hang_up(c);
}

static void late_limit(void)
{
	struct conn c = dial();
	lower_limit();
	around("the limit lowered", c);
	survey(LOW_LIMIT / 2);
	hang_up(c);
}

static void forked(void)
{
	struct conn c = dial();
	answered("the parent", c);
	pid_t child = fork();
	check(child >= 0, "fork");
	if (child == 0) {
		survey(LIMIT / 2);
		around("as a child", c);
		_exit(0);
	}
	int status;
	check(waitpid(child, &status, 0) == child && status == 0, "the child");
	lastly("with a child gone", c);
}

static const struct scenario {
	const char *name;
	void (*run)(void);
} scenarios[] = {
	{ "plain", plain },
	{ "no_stdin", no_stdin },
	{ "none_of_three", none_of_three },
	{ "late_none_of_three", late_none_of_three },
	{ "by_closefrom", by_closefrom },
	{ "by_close_range", by_close_range },
	{ "unshared", unshared },
	{ "by_cloexec", by_cloexec },
	{ "one_by_one", one_by_one },
	{ "by_daemon", by_daemon },
	{ "onto_all", onto_all },
	{ "early_limit", early_limit },
	{ "late_limit", late_limit },
	{ "forked", forked },
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

/* The lowest numbers are this process's standard streams, and nothing else is open. */
static void begin(void)
{
	struct rlimit limit = { LIMIT, LIMIT };
	check(!close_range(3, ~0U, 0) && !setrlimit(RLIMIT_NOFILE, &limit), "begin");
	alarm(60);
}

static void run_one(const struct scenario *scenario, const char *self)
{
	int line[2];
	check(!pipe(line), "pipe");
	say("%s\n", scenario->name);
	pid_t child = fork();
	check(child >= 0, "fork");
	if (child == 0) {
		dup2(line[1], 1);
		close_range(3, ~0U, 0);
		execl(self, self, scenario->name, peer_address, own_address, NULL);
		_exit(127);
	}
	close(line[1]);
	char bytes[4096];
	for (ssize_t n; (n = read(line[0], bytes, sizeof bytes)) > 0;)
		check(write(1, bytes, n) == n, "write");
	close(line[0]);
	int status;
	check(waitpid(child, &status, 0) == child, "wait");
	say(" ends with %d\n", status);
}

/* A forked child that goes on with nothing of its parent's, and is there before that one ends. */
static void leave_a_sleeper(void)
{
	int line[2];
	struct conn c = dial();
	answered("the parent", c);
	check(!pipe(line), "pipe");
	pid_t child = fork();
	check(child >= 0, "fork");
	if (child == 0) {
		close(c.here);
		close(line[0]), close(line[1]);
		while (read(0, (char[1]){ 0 }, 1) > 0)
			;
		_exit(0);
	}
	close(line[1]);
	check(read(line[0], (char[1]){ 0 }, 1) == 0, "the child");
	answered("the parent again", c);
	say("asleep\n");
}

int main(int argc, char **argv)
{
	check(argc >= 3, "usage: stack_numbers peer|all|sleeper|echo|shows|NAME PEER [OWN]");
	peer_address = argv[2];
	own_address = argc > 3 ? argv[3] : NULL;
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(argv[1], "peer")) {
		serve();
		return 0;
	}
	begin();
	if (!strcmp(argv[1], "all")) {
		alarm(0);
		for (int i = 0; i < SCENARIOS; i++)
			run_one(&scenarios[i], argv[0]);
		return 0;
	}
	if (!strcmp(argv[1], "sleeper")) {
		alarm(0);
		leave_a_sleeper();
		return 0;
	}
	if (!strcmp(argv[1], "echo")) {
		struct conn c = dial();
		answered("echo", c);
		hang_up(c);
		return 0;
	}
	if (!strcmp(argv[1], "shows")) {
		answered("before", dial());
		unsetenv("LD_PRELOAD");
		execlp("sh", "sh", "-c", "for fd in /proc/self/fd/*; do echo ${fd##*/}; done", NULL);
		return 127;
	}
	for (int i = 0; i < SCENARIOS; i++)
		if (!strcmp(argv[1], scenarios[i].name)) {
			scenarios[i].run();
			return 0;
		}
	return 2;
}
