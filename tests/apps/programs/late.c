/* late.c LIBRARY - opens a library after descriptors and threads are in use, and goes on using them. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int pair[2];

static void *writer(void *unused)
{
	(void)unused;
	for (int i = 0; i < 1000; i++)
		if (write(pair[1], &i, sizeof i) != sizeof i)
			break;
	return NULL;
}

int main(int argc, char **argv)
{
	struct epoll_event event = { .events = EPOLLIN };
	int epfd = epoll_create1(0), value, sum = 0;
	pthread_t thread;
	void *library;

	if (argc != 2 || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, pair[0], &event) < 0)
		return 2;
	pthread_create(&thread, NULL, writer, NULL);
	for (int i = 0; i < 1000; i++) {
		if (i == 100) {
			library = dlopen(argv[1], RTLD_NOW);
			if (!library) {
				puts(dlerror());
				return 1;
			}
		}
		if (epoll_wait(epfd, &event, 1, -1) != 1 || read(pair[0], &value, sizeof value) != sizeof value)
			return 3;
		sum += value;
	}
	pthread_join(thread, NULL);
	value = close(pair[0]);
	printf("sum %d, close %d, again %d\n", sum, value, close(pair[0]));
	return 0;
}
