/* process_state.c: prints what a library could change behind a program's back, one line each, from main
 * and again from an atexit handler.  With "kcm" as argument it uses KCM in between, and checks that
 * nothing is different but descriptors and a thread of the library's own. */
#include "check.h"
#include <dirent.h>
#include <limits.h>
#include <locale.h>
#include <malloc.h>
#include <sched.h>
#include <stdio_ext.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>

extern char **environ;

static FILE *out;

static void signals(void)
{
	sigset_t blocked, pending;
	stack_t stack;
	for (int n = 1; n <= SIGRTMAX; n++) {
		struct sigaction action;
		if (sigaction(n, NULL, &action))
			continue;
		fprintf(out, "signal %d: %s flags %x\n", n,
				action.sa_handler == SIG_DFL ? "default" : action.sa_handler == SIG_IGN ? "ignored" : "caught",
				action.sa_flags);
	}
	CHECK(!sigprocmask(SIG_BLOCK, NULL, &blocked) && !sigpending(&pending) && !sigaltstack(NULL, &stack));
	for (int n = 1; n <= SIGRTMAX; n++)
		if (sigismember(&blocked, n) == 1 || sigismember(&pending, n) == 1)
			fprintf(out, "signal %d: blocked or pending\n", n);
	fprintf(out, "signal stack: flags %x size %zu\n", stack.ss_flags, stack.ss_size);
}

static void limits(void)
{
	for (int which = 0; which < RLIM_NLIMITS; which++) {
		struct rlimit limit;
		CHECK(!getrlimit(which, &limit));
		fprintf(out, "limit %d: %lx %lx\n", which, (long)limit.rlim_cur, (long)limit.rlim_max);
	}
	for (int which = 0; which < 3; which++) {
		struct itimerval timer;
		CHECK(!getitimer(which, &timer));
		fprintf(out, "timer %d: %ld %ld\n", which, (long)timer.it_value.tv_sec / 100, (long)timer.it_interval.tv_sec);
	}
}

static void identity(void)
{
	char text[PATH_MAX], name[16] = "";
	mode_t mask = umask(0);
	umask(mask);
	prctl(PR_GET_NAME, name);
	fprintf(out, "umask %o\ncwd %s\nname %s\n", mask, getcwd(text, sizeof text), name);
	fprintf(out, "ids %d %d %d %d session %d\n", getuid(), geteuid(), getgid(), getegid(), getsid(0) == getpid());
	fprintf(out, "personality %x dumpable %d no_new_privs %d seccomp %d\n", personality(~0u),
			prctl(PR_GET_DUMPABLE), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_SECCOMP));
	fprintf(out, "scheduler %d nice %d\n", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0));
	fprintf(out, "locale %s\n", setlocale(LC_ALL, NULL));
	for (char **variable = environ; *variable; variable++)
		fprintf(out, "variable %s\n", *variable);
}

static void memory(void)
{
	struct mallinfo2 heap = mallinfo2();
	FILE *streams[] = {stdin, stdout, stderr};
	fprintf(out, "heap: %zu mapped %zu pieces\n", heap.hblkhd, heap.hblks);
	for (int i = 0; i < 3; i++)
		fprintf(out, "stream %d: buffer %zu line %d reading %d\n", i, __fbufsize(streams[i]), __flbf(streams[i]),
				__freading(streams[i]));
}

/* Names of mapped files, without their directories; each once. */
static void maps(void)
{
	char line[PATH_MAX + 128], seen[64][64];
	int count = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, f)) {
		char *name = strrchr(line, '/');
		int known = !name;
		if (known)
			continue;
		name[strcspn(name, "\n")] = 0;
		for (int i = 0; i < count; i++)
			known |= !strcmp(seen[i], name + 1);
		if (!known && count < 64) {
			snprintf(seen[count++], sizeof *seen, "%s", name + 1);
			fprintf(out, "mapped %s\n", name + 1);
		}
	}
	fclose(f);
}

static int threads(void)
{
	int count = 0;
	DIR *d = opendir("/proc/self/task");
	for (struct dirent *e; (e = readdir(d));)
		count += *e->d_name != '.';
	closedir(d);
	return count;
}

static void descriptors(void)
{
	struct rlimit limit;
	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	for (int fd = 0; fd < (int)limit.rlim_cur && fd < 1 << 20; fd++) {
		int flags = fcntl(fd, F_GETFD);
		if (flags >= 0 && fd != fileno(out))
			fprintf(out, "descriptor %d: flags %x %x\n", fd, flags, fcntl(fd, F_GETFL));
	}
	fprintf(out, "threads %d\n", threads());
}

static char *state(size_t *size)
{
	char *text;
	out = open_memstream(&text, size);
	signals(), limits(), identity(), memory(), maps();
	fclose(out);
	return text;
}

static void show(void)
{
	out = stdout;
	signals(), limits(), identity(), memory(), maps(), descriptors();
}

/* Whether the second thread has this name, which it gives itself when it runs first. */
static int other_thread_is(const char *wanted)
{
	char path[PATH_MAX], name[32] = "";
	for (int ms = 0; ms < 5000 && strcmp(name, wanted); ms++, usleep(1000)) {
		DIR *d = opendir("/proc/self/task");
		for (struct dirent *e; (e = readdir(d));) {
			if (*e->d_name == '.' || atoi(e->d_name) == getpid())
				continue;
			snprintf(path, sizeof path, "/proc/self/task/%s/comm", e->d_name);
			FILE *f = fopen(path, "r");
			CHECK(f && fgets(name, sizeof name, f));
			fclose(f);
		}
		closedir(d);
	}
	return !strcmp(name, wanted);
}

/* Whether a descriptor has FD_CLOEXEC, as /proc tells. */
static int ends_with_exec(int fd)
{
	char path[64], line[64];
	unsigned flags = 0;
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(path, "r");
	while (f && fgets(line, sizeof line, f))
		sscanf(line, "flags: %o", &flags);
	CHECK(f && !fclose(f));
	return (flags & O_CLOEXEC) != 0;
}

static void use_kcm(void)
{
	unsigned char bytes[16];
	struct rlimit limit;
	size_t sizes[2];
	int own = 0;
	CHECK(!close_range(20, ~0u, 0) && open_fd_count() < 10); /* what this process inherited */
	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	char *before = state(&sizes[0]);
	int b = prog_p4(), k = kcm(SOCK_DGRAM);
	struct pair t = attached(k, b);
	size_t len = p4(bytes, 8, 'x');
	CHECK(write(t.p, bytes, len) == (ssize_t)len && ready(k, POLLIN, 5000));
	CHECK(recv(k, bytes, sizeof bytes, 0) == (ssize_t)len);
	char *after = state(&sizes[1]);
	/* A page of statistics is mapped by pages of a file, if at all. */
	if (strcmp(before, after))
		printf("before:\n%s\nafter:\n%s\n", before, after);
	CHECK(!strcmp(before, after));
	/* What is open beyond the program's own is out of the way and ends with exec. */
	DIR *d = opendir("/proc/self/fd");
	for (struct dirent *e; (e = readdir(d));) {
		int fd = atoi(e->d_name);
		if (*e->d_name == '.' || fd == dirfd(d) || fd < 20)
			continue;
		own++;
		CHECK(fd >= (int)(limit.rlim_cur - limit.rlim_cur / 4) && ends_with_exec(fd));
		FAILS(fcntl(fd, F_GETFD), EBADF);
		FAILS(fcntl(fd, F_DUPFD, 0), EBADF);
		FAILS(dup(fd), EBADF);
		FAILS(dup2(fd, k), EBADF);
		FAILS(dup2(k, fd), EBUSY);
		FAILS(close(fd), EBADF);
	}
	closedir(d);
	/* The page, where tracers knock, what the housekeeper waits on and its bell. */
	CHECK(own > 0 && own <= 4 && threads() == 2);
	CHECK(other_thread_is("kcmshim\n"));
	/* A sweep leaves the program's socket closed and ours open. */
	CHECK(!close_range(3, ~0u, 0));
	CHECK(fcntl(k, F_GETFD) < 0);
	k = kcm(SOCK_DGRAM);
	t = attached(k, prog_p4());
	len = p4(bytes, 8, 'x');
	CHECK(write(t.p, bytes, len) == (ssize_t)len && ready(k, POLLIN, 5000));
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "kcm")) {
		use_kcm();
		return 0;
	}
	printf("errno %d\n", errno);
	show();
	atexit(show);
	return 0;
}
