/* late_load.c LIBRARY: loads the library when the program has long been running.  Its own calls stay
 * bound to libc; what it looks up in the library works. */
#include "check.h"
#include <dlfcn.h>

static void *idle(void *unused)
{
	(void)unused;
	pause();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	hang_guard("late_load");
	CHECK(argc == 2);
	/* A thread from before, which the library has not seen. */
	CHECK(!pthread_create(&thread, NULL, idle, NULL));
	int pipe_before[2], by_libc = socket(AF_KCM, SOCK_DGRAM, 0);
	CHECK(!pipe(pipe_before));
	void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	if (!library)
		printf("%s\n", dlerror());
	CHECK(library);
	CHECK((socket(AF_KCM, SOCK_DGRAM, 0) < 0) == (by_libc < 0));
	int (*make)(int, int, int) = (int (*)(int, int, int))dlsym(library, "socket");
	int (*name)(int, struct sockaddr *, socklen_t *) =
		(int (*)(int, struct sockaddr *, socklen_t *))dlsym(library, "getsockname");
	int (*end)(int) = (int (*)(int))dlsym(library, "close");
	struct sockaddr_storage at;
	socklen_t len = sizeof at;
	int k = make(AF_KCM, SOCK_DGRAM, 0);
	CHECK(k >= 0);
	FAILS(name(k, (struct sockaddr *)&at, &len), EOPNOTSUPP);
	CHECK(!end(k) && !end(pipe_before[0]) && !close(pipe_before[1]));
	/* It stays: others may hold pointers into it. */
	CHECK(!dlclose(library));
	CHECK((k = make(AF_KCM, SOCK_DGRAM, 0)) >= 0 && !end(k));
	return 0;
}
