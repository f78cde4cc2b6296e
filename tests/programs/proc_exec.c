/* proc_exec.c: another program inherits a KCM socket, by every way that libc has to start one.  Checks
 * itself.  Usage: proc_exec PROGRAM shimmed|bare: the program echoes one message of descriptor 50; it is
 * given the environment as it is, or an empty one. */
#include "check.h"
#include <pty.h>
#include <sched.h>
#include <spawn.h>
#include <wordexp.h>

enum { INHERITED = 50, STACK_BYTES = 64 << 10 };

extern char **environ;

static char *path, *folder, *name;
static char *words[] = {NULL, NULL};
static char **env;
static char *no_env[] = {NULL};

/* --- ways that end in the new program; each is the body of a child ------------------------- */

static void by_execl(void) { execl(path, path, NULL); }
static void by_execlp(void) { execlp(path, path, NULL); }
static void by_execle(void) { execle(path, path, NULL, env); }
static void by_execv(void) { execv(path, words); }
static void by_execve(void) { execve(path, words, env); }
static void by_execvp(void) { execvp(name, words); }
static void by_execvpe(void) { execvpe(name, words, env); }
static void by_fexecve(void) { fexecve(open(path, O_RDONLY), words, env); }
static void by_execveat(void) { execveat(open(folder, O_RDONLY | O_DIRECTORY), name, words, env, 0); }
static void by_number(void) { syscall(SYS_execve, path, words, env); }
static void by_many_arguments(void)
{
#define TEN "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"
#define HUNDRED TEN, TEN, TEN, TEN, TEN, TEN, TEN, TEN, TEN, TEN
	execle(path, path, HUNDRED, HUNDRED, HUNDRED, NULL, env);
}

static const struct {
	const char *name;
	void (*exec)(void);
	int takes_env;
} execs[] = {
	{"execl", by_execl, 0},		  {"execlp", by_execlp, 0},	  {"execle", by_execle, 1},
	{"execv", by_execv, 0},		  {"execve", by_execve, 1},	  {"execvp", by_execvp, 0},
	{"execvpe", by_execvpe, 1},	  {"fexecve", by_fexecve, 1}, {"execveat", by_execveat, 1},
	{"SYS_execve", by_number, 1}, {"300 arguments", by_many_arguments, 1},
};

/* --- ways to a child ----------------------------------------------------------------------- */

static void (*exec)(void);

static int become(void *unused)
{
	(void)unused;
	exec();
	_exit(9);
}

static pid_t by_fork(void)
{
	pid_t pid = fork();
	if (!pid)
		become(NULL);
	return pid;
}

static pid_t by_vfork(void)
{
	pid_t pid = vfork();
	if (!pid)
		become(NULL);
	return pid;
}

static pid_t by_raw_fork(void)
{
	pid_t pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!pid)
		become(NULL);
	return pid;
}

static char stack[STACK_BYTES] __attribute__((aligned(16)));

static pid_t by_clone(void)
{
	return clone(become, stack + STACK_BYTES, SIGCHLD, NULL);
}

static pid_t by_clone_in_memory(void)
{
	return clone(become, stack + STACK_BYTES, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
}

static int terminals;

static pid_t by_forkpty(void)
{
	int terminal;
	terminals++;
	pid_t pid = forkpty(&terminal, NULL, NULL, NULL);
	if (!pid)
		become(NULL);
	return pid;
}

static const struct {
	const char *name;
	pid_t (*start)(void);
} children[] = {
	{"fork", by_fork},	 {"vfork", by_vfork},		 {"SYS_clone", by_raw_fork},
	{"clone", by_clone}, {"clone in our memory", by_clone_in_memory}, {"forkpty", by_forkpty},
};

/* --- ways without a body of ours ----------------------------------------------------------- */

static pid_t by_posix_spawn(void)
{
	pid_t pid;
	CHECK(!posix_spawn(&pid, path, NULL, NULL, words, env));
	return pid;
}

static pid_t by_posix_spawnp(void)
{
	pid_t pid;
	CHECK(!posix_spawnp(&pid, name, NULL, NULL, words, env));
	return pid;
}

/* The socket has FD_CLOEXEC, and reaches the program by a file action. */
static pid_t by_file_action(void)
{
	pid_t pid;
	posix_spawn_file_actions_t actions;
	int kept = fcntl(INHERITED, F_DUPFD_CLOEXEC, 60);
	CHECK(!close(INHERITED));
	CHECK(!posix_spawn_file_actions_init(&actions));
	CHECK(!posix_spawn_file_actions_addclosefrom_np(&actions, 200));
	CHECK(!posix_spawn_file_actions_adddup2(&actions, kept, INHERITED));
	CHECK(!posix_spawn(&pid, path, &actions, NULL, words, env));
	CHECK(!posix_spawn_file_actions_destroy(&actions));
	CHECK(dup2(kept, INHERITED) == INHERITED && !close(kept));
	return pid;
}

static pid_t by_system(void)
{
	CHECK(!system(path));
	return 0;
}

static pid_t by_popen(void)
{
	FILE *output = popen(path, "r");
	CHECK(output && !pclose(output));
	return 0;
}

static pid_t by_wordexp(void)
{
	char command[512];
	wordexp_t result;
	snprintf(command, sizeof command, "$(%s)", path);
	CHECK(!wordexp(command, &result, 0));
	return 0;
}

static const struct {
	const char *name;
	pid_t (*start)(void);
	int takes_env;
} spawns[] = {
	{"posix_spawn", by_posix_spawn, 1}, {"posix_spawnp", by_posix_spawnp, 1},
	{"a file action", by_file_action, 1}, {"system", by_system, 0},
	{"popen", by_popen, 0}, {"wordexp", by_wordexp, 0},
};

/* --- the parent ---------------------------------------------------------------------------- */

static struct pair t;

static unsigned char sent[12];

static void ask(const char *how)
{
	size_t len = p4(sent, 8, *how);
	CHECK(write(t.p, sent, len) == (ssize_t)len);
}

/* The program answers over the socket that it inherits. */
static void answers(const char *how, const char *what, pid_t pid)
{
	unsigned char got[sizeof sent];
	int status = 0;
	CHECK(pid >= 0);
	if (!ready(t.p, POLLIN, 5000)) {
		printf("%s, %s: silence\n", how, what);
		exit(1);
	}
	CHECK(read(t.p, got, sizeof got) == sizeof sent && !memcmp(got, sent, sizeof sent));
	if (pid)
		CHECK(waitpid(pid, &status, 0) == pid);
	if (status)
		printf("%s, %s: %x\n", how, what, status);
	CHECK(!status);
}

/* The owner itself would become a program, but a folder is none: everything is as it was. */
static void becomes_nothing(void)
{
	for (int round = 0; round < 3; round++)
		CHECK(execv("/", words) == -1 && errno == EACCES);
	unsigned char got[sizeof sent];
	ask("the owner");
	CHECK(recv(INHERITED, got, sizeof got, 0) == sizeof sent && !memcmp(got, sent, sizeof sent));
}

int main(int argc, char **argv)
{
	hang_guard("proc_exec");
	CHECK(argc == 3);
	int bare = !strcmp(argv[2], "bare"), k = kcm(SOCK_SEQPACKET);
	path = argv[1], words[0] = argv[1], env = bare ? no_env : environ;
	folder = strdup(path), name = strrchr(folder, '/') + 1, name[-1] = 0;
	CHECK(!setenv("PATH", folder, 1));
	if (bare)
		environ = no_env;
	t = attached(k, prog_p4());
	CHECK(dup2(k, INHERITED) == INHERITED && !fcntl(k, F_SETFD, FD_CLOEXEC));
	int open_before = open_fd_count();
	becomes_nothing();
	for (size_t c = 0; c < sizeof children / sizeof *children; c++)
		for (size_t e = 0; e < sizeof execs / sizeof *execs; e++) {
			if ((bare && (execs[e].exec == by_execvp || execs[e].exec == by_execvpe)))
				continue;
			exec = execs[e].exec;
			pid_t pid = children[c].start();
			ask(children[c].name);
			answers(children[c].name, execs[e].name, pid);
		}
	for (size_t s = 0; s < sizeof spawns / sizeof *spawns; s++) {
		if (bare && spawns[s].start == by_posix_spawnp)
			continue;
		ask(spawns[s].name);
		answers(spawns[s].name, "", spawns[s].start());
	}
	becomes_nothing(); /* while others have had the socket */
	/* The parent's own copies are as they were, and the library holds what it takes to share one socket:
	 * control socket, line, ledger.  It may still be noticing that the last child is gone. */
	CHECK(fcntl(k, F_GETFD) == FD_CLOEXEC && !fcntl(INHERITED, F_GETFD));
	int more = 0;
	for (int ms = 0; ms < 5000; ms++, usleep(1000))
		if ((more = open_fd_count() - open_before - terminals) <= 3)
			break;
	if (more > 3)
		printf("descriptors: %d more\n", more);
	CHECK(more <= 3);
	return 0;
}
