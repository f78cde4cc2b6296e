/* Forks while other threads make, clone and close KCM sockets, whose numbers come again at once. A fork
 * that could not share a socket would say so. */
#include "guest.h"

enum { FORKS = 150, FORKERS = 2, CLONERS = 2 };

static int k;
static volatile sig_atomic_t over;

static void *clone_them(void *arg)
{
	for (int made; !over; close(made))
		if (ioctl(k, SIOCKCMCLONE, &made))
			return NULL;
	return arg;
}

static void *make_them(void *arg)
{
	while (!over)
		close(socket(AF_KCM, SOCK_DGRAM, KCMPROTO_CONNECTED));
	return arg;
}

static void *fork_them(void *arg)
{
	for (int i = 0; i < FORKS; i++) {
		int status = -1;
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
			say("fork %d: %d, ended with %d", i, pid, status);
	}
	return arg;
}

int main(void)
{
	pthread_t busy[CLONERS + 1], forkers[FORKERS];
	k = kcm(SOCK_DGRAM);
	for (int i = 0; i < CLONERS; i++)
		busy[i] = spawn(clone_them, NULL);
	busy[CLONERS] = spawn(make_them, NULL);
	for (int i = 0; i < FORKERS; i++)
		forkers[i] = spawn(fork_them, NULL);
	for (int i = 0; i < FORKERS; i++)
		pthread_join(forkers[i], NULL);
	over = 1;
	for (int i = 0; i <= CLONERS; i++)
		pthread_join(busy[i], NULL);
	say("%d forks", FORKS * FORKERS);
	return 0;
}
