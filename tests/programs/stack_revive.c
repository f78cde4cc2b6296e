/* Listeners whose owner is killed, or stopped, while another process has the address.
 *
 *   stack_revive stopped OWN     the process that takes the address next is stopped: a server that has a copy of
 *                                the listener serves its own children meanwhile
 *   stack_revive full OWN        the owner is stopped, and as many call at it as may wait there: a call that does
 *                                not wait does not, and the owner's end is seen */
#include "guest.h"
#include "guard.h"

#include <sys/prctl.h>
#include <sys/un.h>

enum { PORT = 7300, CALLERS_MAX = 1000 };

static void check(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "stack_revive: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static struct sockaddr_in at(const char *ip, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	check(inet_pton(AF_INET, ip, &a.sin_addr) == 1, "address");
	return a;
}

static int listener(const char *own, int port)
{
	struct sockaddr_in a = at(own, port);
	int s = socket(AF_INET, SOCK_STREAM, 0);
	check(s >= 0 && bind(s, (void *)&a, sizeof a) == 0 && listen(s, 16) == 0, "listen");
	return s;
}

/* What processes tell each other: one byte each time. */
struct line {
	int ends[2];
};

static struct line line(void)
{
	struct line l;
	check(pipe(l.ends) == 0, "pipe");
	return l;
}

static void tell(struct line l)
{
	check(write(l.ends[1], "", 1) == 1, "tell");
}

static void await(struct line l)
{
	check(read(l.ends[0], (char[1]){ 0 }, 1) == 1, "await");
}

/* Every thread of the process is stopped. */
static int is_stopped(pid_t pid)
{
	char path[64], state = 'T';
	for (int tid = pid; tid < pid + 64 && state == 'T'; tid++) {
		snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
		FILE *f = fopen(path, "r");
		if (!f)
			continue;
		check(fscanf(f, "%*d (%*[^)]) %c", &state) == 1, "state");
		fclose(f);
	}
	return state == 'T';
}

static void stop(pid_t pid)
{
	check(kill(pid, SIGSTOP) == 0, "stop");
	while (!is_stopped(pid))
		usleep(1000);
}

static void end(pid_t pid)
{
	check(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid, "end");
}

/* AF_UNIX sockets of which the abstract name has this in it; the name of the last. */
static int named(const char *part, char *name, size_t room)
{
	char row[512];
	int count = 0;
	FILE *f = fopen("/proc/net/unix", "r");
	check(f != NULL, "/proc/net/unix");
	while (fgets(row, sizeof row, f)) {
		char *found = strstr(row, part);
		if (!found)
			continue;
		count++;
		if (name)
			snprintf(name, room, "%.*s", (int)strcspn(found, "\n"), found);
	}
	fclose(f);
	return count;
}

/* Uses its copy of the owner's listener by a call that does not wait. */
static void uses(int s)
{
	int flags = fcntl(s, F_GETFL);
	check(fcntl(s, F_SETFL, flags | O_NONBLOCK) == 0, "O_NONBLOCK");
	check(accept(s, NULL, NULL) < 0 && errno == EAGAIN, "accept");
	check(fcntl(s, F_SETFL, flags) == 0, "flags");
}

/* Answers one connection. */
static void answers(int s)
{
	char c;
	int fd = accept(s, NULL, NULL);
	check(fd >= 0 && recv(fd, &c, 1, 0) == 1 && send(fd, &c, 1, 0) == 1, "echo");
	while (recv(fd, &c, 1, 0) > 0)
		;
	_exit(0);
}

/* Is answered. While nobody knows of the listener, a connection is refused. */
static void is_answered(const char *own)
{
	struct sockaddr_in a = at(own, PORT);
	char c = 'c';
	for (;;) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		check(fd >= 0, "socket");
		if (connect(fd, (void *)&a, sizeof a) == 0 && send(fd, &c, 1, MSG_NOSIGNAL) == 1 &&
		    recv(fd, &c, 1, 0) == 1)
			break;
		check(errno == ECONNREFUSED || errno == ECONNRESET || errno == EPIPE, "connect");
		close(fd);
		usleep(1000);
	}
	puts("a connection is answered");
}

/* The processes of a run: the owner of a listener, and a child of its, the server, which has a copy. */
struct family {
	pid_t owner, server;
	struct line go, used;
};

/* `serve` runs in the server when it is told to go. */
static struct family family(const char *own, void (*before)(void), void (*serve)(int, struct family *))
{
	struct family f = { .go = line(), .used = line() };
	struct line who = line();
	if ((f.owner = fork()) == 0) {
		int s = listener(own, PORT);
		if (fork() == 0) {
			before();
			pid_t self = getpid();
			check(write(who.ends[1], &self, sizeof self) == sizeof self, "who");
			await(f.go);
			serve(s, &f);
		}
		for (;;)
			pause();
	}
	check(f.owner > 0 && read(who.ends[0], &f.server, sizeof f.server) == sizeof f.server, "who");
	return f;
}

static struct line child_goes, child_done;

/* A child that gets a message by its parent's mux, however the parent's listener fares. */
static void has_child(void)
{
	int mux = kcm(SOCK_DGRAM);
	struct pair p = attached(mux, prog_p4());
	pid_t pid = fork();
	check(mux >= 0 && p.a >= 0 && pid >= 0, "a child");
	if (pid > 0)
		return;
	char bytes[32];
	ssize_t n = (ssize_t)p4(bytes, 5, 'm');
	await(child_goes);
	check(write(p.p, bytes, n) == n && recv(mux, bytes, sizeof bytes, 0) == n, "receive");
	puts("a child receives");
	fflush(stdout);
	tell(child_done);
	_exit(0);
}

static void has_none(void)
{
}

static void uses_and_answers(int s, struct family *f)
{
	uses(s);
	tell(f->used);
	answers(s);
}

static void stopped(const char *own)
{
	struct line begin = line(), begun = line();
	child_goes = line(), child_done = line();
	pid_t next = fork();
	if (next == 0) {
		await(begin);
		listener(own, PORT + 1);
		tell(begun);
		for (;;)
			pause();
	}
	struct family f = family(own, has_child, uses_and_answers);
	tell(f.go);
	await(f.used);
	stop(f.server);
	end(f.owner);
	tell(begin);
	await(begun);
	stop(next);
	check(kill(f.server, SIGCONT) == 0, "go on");
	while (named("kcmshim/address/", NULL, 0) < 2) /* the server calls at whoever has the address now */
		usleep(1000);
	tell(child_goes);
	await(child_done);
	check(kill(next, SIGCONT) == 0, "go on");
	is_answered(own);
	end(next);
}

static void full(const char *own)
{
	char name[108];
	static int callers[CALLERS_MAX];
	int count = 0;
	struct family f = family(own, has_none, uses_and_answers);
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	char part[32];
	snprintf(part, sizeof part, "kcmshim/%d/", f.owner);
	check(named(part, name, sizeof name) > 0, "the owner's name");
	memcpy(to.sun_path + 1, name, strlen(name));
	socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
	stop(f.owner);
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
		check(fd >= 0 && count < CALLERS_MAX, "caller");
		callers[count++] = fd;
		if (connect(fd, (void *)&to, length) != 0)
			break;
	}
	check(errno == EAGAIN, "a full door");
	tell(f.go);
	await(f.used);
	puts("a call that does not wait has not waited");
	while (count > 0)
		close(callers[--count]);
	check(kill(f.owner, SIGCONT) == 0, "go on");
	end(f.owner);
	is_answered(own);
}

int main(int argc, char **argv)
{
	check(argc == 3, "usage: stack_revive stopped|full OWN");
	hang_guard(argv[1]);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	check(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "subreaper");
	if (!strcmp(argv[1], "stopped"))
		stopped(argv[2]);
	else
		full(argv[2]);
	puts("done");
	return 0;
}
