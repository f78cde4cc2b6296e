/*
 * daemon.c SWEEP PORT PIDFILE - becomes a daemon the old way: forks twice, closes every descriptor by SWEEP (close,
 * close_range, closefrom), opens /dev/null three times, and answers each connection with one line.
 * daemon.c activated - answers one connection on descriptor 3, as systemd's socket activation hands it over.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void sweep(const char *how)
{
	if (!strcmp(how, "close_range"))
		close_range(0, ~0u, 0);
	else if (!strcmp(how, "closefrom"))
		closefrom(0);
	else
		for (int fd = 0; fd < 4096; fd++)
			close(fd);
}

static void serve_one(int listener)
{
	static const char line[] = "served\n";
	int fd = accept(listener, NULL, NULL);
	char request[512];

	if (fd < 0)
		exit(4);
	/* The request is read so that closing does not reset the connection. */
	struct timeval patience = { 0, 200000 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	(void)!recv(fd, request, sizeof request, 0);
	(void)!write(fd, line, sizeof line - 1);
	close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int listener, on = 1;
	FILE *pid_file;

	if (argc == 2 && !strcmp(argv[1], "activated")) {
		if (!getenv("LISTEN_FDS") || atoi(getenv("LISTEN_PID")) != getpid())
			return 5;
		serve_one(3);
		pause();
	}
	if (argc != 4)
		return 2;
	if (fork() > 0)
		_exit(0);
	setsid();
	if (fork() > 0)
		_exit(0);
	umask(022);
	(void)!chdir("/");
	sweep(argv[1]);
	/* The lowest numbers must be free again, in order. */
	for (int fd = 0; fd < 3; fd++)
		if (open("/dev/null", O_RDWR) != fd)
			_exit(6);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	at.sin_port = htons((uint16_t)atoi(argv[2]));
	if (listener != 3 || bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 8) < 0)
		_exit(7);
	pid_file = fopen(argv[3], "w");
	if (!pid_file)
		_exit(8);
	fprintf(pid_file, "%d\n", (int)getpid());
	fclose(pid_file);
	for (;;)
		serve_one(listener);
}
