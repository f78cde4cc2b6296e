/* guest_main.c: runs the cases of a lane program, each in a process of its own.
 *
 * Usage: PROGRAM [-j JOBS] [-t SECONDS] [-u UID] strict|quirk [ID...]
 * -u drops root's rights first, so that the kernel refuses to load parser programs.
 * A case that hangs or dies leaves a line saying so and does not touch the others.
 */
#include "guest.h"
#include <sched.h>
#include <sys/prctl.h>

#define CASE_SECONDS 20
#define RUNS_MAX 256

struct run {
	const struct kcm_case *of;
	int type;
	pid_t pid;
	int pipe;
	long deadline_ms;
	char *text;
	size_t len;
	int done;
};

static struct run table[RUNS_MAX];
static size_t run_count;

static void count_sigpipe(int sig)
{
	(void)sig;
	sigpipe_count++;
}

static void child(const struct run *run, int out)
{
	struct sigaction act = {.sa_handler = count_sigpipe, .sa_flags = SA_RESTART};
	setpgid(0, 0);
	/* An address is one process's in its network namespace, and cases run at the same time. */
	if (on_stack() && unshare(CLONE_NEWNET))
		exit(2);
	dup2(out, 1);
	close(out);
	sigaction(SIGPIPE, &act, NULL);
	run->of->run(run->type);
	exit(0);
}

static void append(struct run *run, const char *data, size_t len)
{
	run->text = realloc(run->text, run->len + len + 1);
	memcpy(run->text + run->len, data, len);
	run->len += len;
	run->text[run->len] = 0;
}

static void start(struct run *run, int seconds)
{
	int ends[2];
	fflush(stdout);
	if (pipe2(ends, O_CLOEXEC))
		exit(2);
	run->deadline_ms = now_ms() + seconds * 1000L;
	run->pid = fork();
	if (!run->pid) {
		close(ends[0]);
		child(run, ends[1]);
	}
	close(ends[1]);
	run->pipe = ends[0];
	append(run, "", 0);
}

static void finish(struct run *run, int hung)
{
	char line[64];
	int status = 0;
	if (hung) {
		kill(-run->pid, SIGKILL);
		append(run, "  HANG\n", 7);
	}
	waitpid(run->pid, &status, 0);
	kill(-run->pid, SIGKILL);
	if (!hung && WIFSIGNALED(status))
		append(run, line, sprintf(line, "  DIED SIG%s\n", sigabbrev_np(WTERMSIG(status))));
	else if (!hung && WEXITSTATUS(status))
		append(run, line, sprintf(line, "  EXIT %d\n", WEXITSTATUS(status)));
	close(run->pipe);
	run->done = 1;
}

/* Takes what one running case printed; ends it at end of file or deadline. */
static void attend(struct run *run, int readable)
{
	char buf[4096];
	if (readable) {
		ssize_t got = read(run->pipe, buf, sizeof buf);
		if (got > 0)
			append(run, buf, got);
		else
			finish(run, 0);
	} else if (now_ms() > run->deadline_ms) {
		finish(run, 1);
	}
}

static void print(const struct run *run)
{
	printf("== %s %c%s\n%s", run->of->id, run->of->class,
		run->of->types == ONCE ? "" : run->type == SOCK_DGRAM ? " DGRAM" : " SEQPACKET", run->text);
	fflush(stdout);
}

static void run_all(int jobs, int seconds)
{
	size_t next = 0, printed = 0;
	while (printed < run_count) {
		struct pollfd fds[RUNS_MAX];
		struct run *live[RUNS_MAX];
		size_t count = 0;
		for (size_t i = printed; i < next; i++)
			if (!table[i].done)
				count++;
		while (count < (size_t)jobs && next < run_count) {
			start(&table[next++], seconds);
			count++;
		}
		count = 0;
		for (size_t i = printed; i < next; i++)
			if (!table[i].done) {
				fds[count] = (struct pollfd){.fd = table[i].pipe, .events = POLLIN};
				live[count++] = &table[i];
			}
		poll(fds, count, 200);
		for (size_t i = 0; i < count; i++)
			attend(live[i], fds[i].revents);
		while (printed < next && table[printed].done)
			print(&table[printed++]);
	}
}

static int wanted(const struct kcm_case *c, const char *set, char **ids)
{
	int strict = c->class == S || c->class == T;
	if (strict != !strcmp(set, "strict"))
		return 0;
	if (!*ids)
		return 1;
	while (*ids)
		if (!strcmp(*ids++, c->id))
			return 1;
	return 0;
}

static void become(int uid)
{
	if (geteuid() != 0)
		return;
	/* A process that changed its user may not look at its own /proc/self/fd until it says so. */
	if (setgid(uid) || setuid(uid) || prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)) {
		perror("dropping rights");
		exit(2);
	}
}

int guest_main(int argc, char **argv, const struct kcm_case *cases, size_t case_count)
{
	int jobs = 1, seconds = CASE_SECONDS, uid = 0, option;
	while ((option = getopt(argc, argv, "j:t:u:")) != -1)
		*(option == 'j' ? &jobs : option == 't' ? &seconds : &uid) = atoi(optarg);
	if (optind >= argc || (strcmp(argv[optind], "strict") && strcmp(argv[optind], "quirk"))) {
		fprintf(stderr, "usage: %s [-j JOBS] [-t SECONDS] [-u UID] strict|quirk [ID...]\n", argv[0]);
		return 2;
	}
	for (size_t i = 0; i < case_count; i++) {
		if (!wanted(&cases[i], argv[optind], argv + optind + 1))
			continue;
		for (int twice = 0; twice <= (cases[i].types == BOTH) && run_count < RUNS_MAX; twice++)
			table[run_count++] = (struct run){.of = &cases[i], .type = twice ? SOCK_SEQPACKET : SOCK_DGRAM};
	}
	become(uid);
	run_all(jobs < 1 ? 1 : jobs, seconds);
	return 0;
}
