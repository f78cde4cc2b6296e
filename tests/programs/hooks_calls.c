/* hooks_calls.c: the names by which libc's calls on descriptors can be reached: second names,
 * fortified forms, stdio, raw system calls; and the calls that take memory away. */
#include "check.h"

#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

extern int __close(int);
extern int __dup2(int, int);
extern int __fcntl(int, int, ...);
extern int __open(const char *, int, ...);
extern int __open64(const char *, int, ...);
extern int __pipe(int *);
extern int __poll(struct pollfd *, nfds_t, int);
extern int __select(int, fd_set *, fd_set *, fd_set *, struct timeval *);
extern ssize_t __read(int, void *, size_t);
extern ssize_t __write(int, const void *, size_t);
extern ssize_t __send(int, const void *, size_t, int);
extern int __connect(int, const struct sockaddr *, socklen_t);

/* A KCM socket whose messages are 8 bytes each, and its peer. */
struct link {
	int kcm, tcp, peer;
};

static struct link linked(int type)
{
	struct link made = {.kcm = socket(AF_KCM, type, 0)};
	struct pair ends = pair();
	CHECK(made.kcm >= 0);
	made.tcp = ends.a;
	made.peer = ends.p;
	int parser = prog_const(8);
	CHECK(attach(made.kcm, made.tcp, parser) == 0);
	close(parser);
	return made;
}

static void ended(struct link link)
{
	close(link.kcm);
	close(link.tcp);
	close(link.peer);
}

static void arrives(int peer, const char *text)
{
	char got[256];
	size_t want = strlen(text), have = 0;
	while (have < want) {
		ssize_t n = read(peer, got + have, sizeof got - have);
		CHECK(n > 0);
		have += (size_t)n;
	}
	CHECK(have == want && memcmp(got, text, want) == 0);
	FAILS(recv(peer, got, 1, DW), EAGAIN);
}

static void second_names(void)
{
	struct link link = linked(SOCK_DGRAM);
	char buf[64];
	CHECK(write(link.peer, "message1message2message3", 24) == 24);
	struct pollfd entry = {.fd = link.kcm, .events = POLLIN};
	CHECK(__poll(&entry, 1, 10000) == 1 && entry.revents == POLLIN);
	fd_set set;
	FD_ZERO(&set);
	FD_SET(link.kcm, &set);
	CHECK(__select(link.kcm + 1, &set, NULL, NULL, NULL) == 1 && FD_ISSET(link.kcm, &set));
	CHECK(__read(link.kcm, buf, sizeof buf) == 8 && memcmp(buf, "message1", 8) == 0);
	CHECK(__write(link.kcm, "written ", 8) == 8);
	CHECK(__send(link.kcm, "sent", 4, 0) == 4);
	arrives(link.peer, "written sent");
	struct sockaddr_in addr = {.sin_family = AF_INET};
	FAILS(__connect(link.kcm, (struct sockaddr *)&addr, sizeof addr), EOPNOTSUPP);
	int copy = __fcntl(link.kcm, F_DUPFD, 100);
	CHECK(copy >= 100 && read(copy, buf, sizeof buf) == 8 && memcmp(buf, "message2", 8) == 0);
	CHECK(__dup2(copy, 200) == 200 && __close(copy) == 0);
	CHECK(read(200, buf, sizeof buf) == 8 && memcmp(buf, "message3", 8) == 0);
	CHECK(__close(200) == 0);
	FAILS(read(200, buf, 1), EBADF);
	int page = __open("/proc/net/kcm", O_RDONLY), again = __open64("/proc/net/kcm_stats", O_RDONLY);
	CHECK(page >= 0 && read(page, buf, 3) == 3 && memcmp(buf, "*** ", 3) == 0);
	CHECK(again >= 0 && read(again, buf, 3) == 3);
	close(page);
	close(again);
	ended(link);
}

static void formatted(int type)
{
	struct link link = linked(type);
	int ends[2];
	CHECK(pipe(ends) == 0);
	const char *text = "a-1-1.5-b-2-2.5-c-3-3.5-d-4-4.5-e-5-5.5-f-6-6.5-g-7-7.5-h-8-8.5-i-9-9.5";
#define ALL                                                                                        \
	"%s-%d-%.1f-%s-%d-%.1f-%s-%d-%.1f-%s-%d-%.1f-%s-%d-%.1f-%s-%d-%.1f-%s-%d-%.1f-%s-%d-%.1f-"      \
	"%s-%d-%.1f",                                                                                  \
		"a", 1, 1.5, "b", 2, 2.5, "c", 3, 3.5, "d", 4, 4.5, "e", 5, 5.5, "f", 6, 6.5, "g", 7, 7.5, \
		"h", 8, 8.5, "i", 9, 9.5
	CHECK(dprintf(link.kcm, ALL) == (int)strlen(text));
	arrives(link.peer, text);
	CHECK(dprintf(ends[1], ALL) == (int)strlen(text));
	char got[128];
	CHECK(read(ends[0], got, sizeof got) == (ssize_t)strlen(text));
	CHECK(memcmp(got, text, strlen(text)) == 0);
	CHECK(dprintf(link.kcm, "plain") == 5);
	arrives(link.peer, "plain");
	FAILS(dprintf(-1, "x"), EBADF);
	close(ends[0]);
	close(ends[1]);
	ended(link);
}

static void streams(void)
{
	struct link link = linked(SOCK_DGRAM);
	FILE *stream = fdopen(link.kcm, "r+");
	CHECK(stream && fileno(stream) == link.kcm);
	char line[64];
	CHECK(write(link.peer, "line 01\nline 02\n", 16) == 16);
	CHECK(fgets(line, sizeof line, stream) && strcmp(line, "line 01\n") == 0);
	CHECK(fgets(line, sizeof line, stream) && strcmp(line, "line 02\n") == 0);
	CHECK(fprintf(stream, "answer %d", 42) == 9 && fflush(stream) == 0);
	arrives(link.peer, "answer 42");
	FAILS(fseek(stream, 0, SEEK_END), ESPIPE);
	clearerr(stream);
	CHECK(fputs("flushed by fclose", stream) >= 0 && fclose(stream) == 0);
	arrives(link.peer, "flushed by fclose");
	FAILS(fcntl(link.kcm, F_GETFD), EBADF);
	/* The mux is gone with its last socket: the connection is free for another. */
	int other = kcm(SOCK_DGRAM), parser = prog_const(8);
	CHECK(attach(other, link.tcp, parser) == 0);
	close(other);
	FAILS((fdopen(kcm(SOCK_DGRAM), "?") ? 0 : -1), EINVAL);

	/* A stream that was there before its socket was attached. */
	struct pair ends = pair();
	stream = fdopen(ends.a, "r");
	CHECK(stream != NULL);
	int mux = kcm(SOCK_DGRAM);
	CHECK(attach(mux, ends.a, parser) == 0);
	CHECK(fclose(stream) == 0);
	int plain[2];
	CHECK(pipe(plain) == 0 && plain[0] == ends.a); /* the lowest number is free */
	CHECK(write(plain[1], "pipe", 4) == 4 && read(plain[0], line, sizeof line) == 4);
	close(plain[0]);
	close(plain[1]);
	close(mux);
	close(ends.p);
	close(parser);

	/* Another file takes the number of a socket. */
	struct link again = linked(SOCK_SEQPACKET);
	stream = fdopen(again.kcm, "w");
	CHECK(stream && fputs("last", stream) >= 0);
	CHECK(freopen("/dev/null", "r", stream) == stream && fileno(stream) == again.kcm);
	arrives(again.peer, "last");
	CHECK(fgetc(stream) == EOF && feof(stream));
	CHECK(fclose(stream) == 0);
	ended(link);
	close(again.tcp);
	close(again.peer);

	/* Streams over none of ours. */
	char text[8];
	stream = fmemopen(text, sizeof text, "w");
	CHECK(stream && fputs("abc", stream) >= 0 && fclose(stream) == 0 && strcmp(text, "abc") == 0);
}

static void raw_calls(void)
{
	struct link link = linked(SOCK_DGRAM);
	int kcm_fd = link.kcm;
	char buf[64];
	CHECK(write(link.peer, "message1message2message3message4message5", 40) == 40);
	struct pollfd entry = {.fd = kcm_fd, .events = POLLIN};
	struct timespec forever = {.tv_sec = 1000};
	CHECK(syscall(SYS_ppoll, &entry, 1, &forever, NULL, 8) == 1 && entry.revents == POLLIN);
	fd_set set;
	FD_ZERO(&set);
	FD_SET(kcm_fd, &set);
	sigset_t none;
	sigemptyset(&none);
	struct {
		const sigset_t *set;
		size_t len;
	} mask = {&none, 8};
	CHECK(syscall(SYS_pselect6, kcm_fd + 1, &set, NULL, NULL, &forever, &mask) == 1);
	CHECK(syscall(SYS_pselect6, kcm_fd + 1, &set, NULL, NULL, NULL, NULL) == 1);
	CHECK(FD_ISSET(kcm_fd, &set));
	FAILS(syscall(SYS_pselect6, kcm_fd + 1, &set, NULL, NULL, NULL, BAD_PTR), EFAULT);
	int epoll = (int)syscall(SYS_epoll_create1, 0);
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = 7}, seen = {0};
	CHECK(syscall(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, kcm_fd, &event) == 0);
	CHECK(syscall(SYS_epoll_pwait, epoll, &seen, 1, -1, NULL, 8) == 1 && seen.data.u32 == 7);
	CHECK(syscall(SYS_epoll_pwait2, epoll, &seen, 1, NULL, NULL, 8) == 1 && seen.data.u32 == 7);
#ifdef __x86_64__
	CHECK(syscall(SYS_poll, &entry, 1, -1) == 1);
	CHECK(syscall(SYS_select, kcm_fd + 1, &set, NULL, NULL, NULL) == 1);
	CHECK(syscall(SYS_epoll_wait, epoll, &seen, 1, -1) == 1 && seen.data.u32 == 7);
	CHECK(syscall(SYS_dup2, kcm_fd, 300) == 300);
#else
	CHECK(syscall(SYS_dup3, kcm_fd, 300, 0) == 300);
#endif
	CHECK(syscall(SYS_read, 300, buf, sizeof buf) == 8 && memcmp(buf, "message1", 8) == 0);
	CHECK(syscall(SYS_close_range, 300, 300, 0) == 0);
	struct iovec room = {buf, sizeof buf};
	CHECK(syscall(SYS_preadv2, kcm_fd, &room, 1, -1L, 0, 0) == 8 && memcmp(buf, "message2", 8) == 0);
	CHECK(syscall(SYS_readv, kcm_fd, &room, 1) == 8 && memcmp(buf, "message3", 8) == 0);
	CHECK(syscall(SYS_recvfrom, kcm_fd, buf, 64, 0, NULL, NULL) == 8);
	int ends[2];
	CHECK(syscall(SYS_pipe2, ends, 0) == 0);
	CHECK(syscall(SYS_splice, kcm_fd, NULL, ends[1], NULL, 64, 0) == 8);
	CHECK(read(ends[0], buf, 64) == 8 && memcmp(buf, "message5", 8) == 0);
	int file = (int)syscall(SYS_memfd_create, "file", 0);
	CHECK(write(file, "in a file", 9) == 9 && lseek(file, 0, SEEK_SET) == 0);
	CHECK(syscall(SYS_sendfile, kcm_fd, file, NULL, 9) == 9);
	arrives(link.peer, "in a file");
	struct iovec text = {"vector", 6};
	CHECK(syscall(SYS_pwritev2, kcm_fd, &text, 1, -1L, 0, 0) == 6);
	arrives(link.peer, "vector");
	FAILS(syscall(SYS_accept, kcm_fd, NULL, NULL), EOPNOTSUPP);
	FAILS(syscall(SYS_socketpair, AF_KCM, SOCK_DGRAM, 0, ends), EOPNOTSUPP);
	FAILS(syscall(SYS_tee, kcm_fd, ends[1], 1, 0), EINVAL);
	FAILS(syscall(SYS_vmsplice, kcm_fd, &text, 1, 0), EBADF);
	FAILS(sockatmark(kcm_fd), ENOTTY);
	int page = (int)syscall(SYS_openat, AT_FDCWD, "/proc/net/kcm", O_RDONLY);
	CHECK(page >= 0 && read(page, buf, 3) == 3 && memcmp(buf, "***", 3) == 0);
	int copy = (int)syscall(SYS_fcntl, kcm_fd, F_DUPFD_CLOEXEC, 400);
	CHECK(copy >= 400 && get_int(copy, SOL_SOCKET, SO_DOMAIN) == AF_KCM);
	close(copy);
	close(page);
	close(file);
	close(epoll);
	close(ends[0]);
	close(ends[1]);
	ended(link);
}

/* Closes a number where no library can see it. */
static void close_unseen(int fd)
{
#ifdef __x86_64__
	long number = SYS_close;
	__asm__ volatile("syscall" : "+a"(number) : "D"(fd) : "rcx", "r11", "memory");
#else
	register long number __asm__("x8") = SYS_close, x0 __asm__("x0") = fd;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(number) : "memory");
#endif
}

static int first_of_pipe(void)
{
	int ends[2];
	CHECK(pipe(ends) == 0);
	close(ends[1]);
	return ends[0];
}

static int first_of_pair(void)
{
	int ends[2];
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
	close(ends[1]);
	return ends[0];
}

static int of_signals(void)
{
	sigset_t none;
	sigemptyset(&none);
	return signalfd(-1, &none, 0);
}

/* Every call that hands out a number notices that what stood there is gone. */
static void stale_numbers(void)
{
	for (int which = 0; which < 14; which++) {
		int gone = kcm(SOCK_DGRAM), number = -1;
		close_unseen(gone);
		switch (which) {
		case 0: number = first_of_pipe(); break;
		case 1: number = first_of_pair(); break;
		case 2: number = of_signals(); break;
		case 3: number = eventfd(0, 0); break;
		case 4: number = timerfd_create(CLOCK_MONOTONIC, 0); break;
		case 5: number = memfd_create("file", 0); break;
		case 6: number = inotify_init(); break;
		case 7: number = inotify_init1(0); break;
		case 8: number = creat("/dev/null", 0600); break;
		case 9: number = open("/dev/null", O_RDWR); break;
		case 10: number = socket(AF_UNIX, SOCK_DGRAM, 0); break;
		case 11: number = epoll_create1(0); break;
		case 12: number = dup(1); break;
		case 13: number = (int)syscall(SYS_eventfd2, 0, 0); break;
		}
		CHECK(number == gone);
		errno = 0;
		CHECK(get_int(number, SOL_SOCKET, SO_DOMAIN) != AF_KCM);
		close(number);
	}
}

/* The message stays where it is when its buffer cannot be memory of a program. */
static void impossible_buffers(int type)
{
	struct link link = linked(type);
	char buf[64];
	void *volatile null = NULL, *volatile anywhere = buf; /* what the compiler cannot judge */
	volatile size_t size_max = SIZE_MAX, negative = (size_t)1 << 63;
	CHECK(write(link.peer, "message1", 8) == 8);
	CHECK(ready(link.kcm, POLLIN, 10000));
	FAILS(recv(link.kcm, (void *)-4096L, size_max, 0), EFAULT);
	FAILS(recvfrom(link.kcm, (void *)-4096L, 64, 0, NULL, NULL), EFAULT);
	FAILS(read(link.kcm, anywhere, size_max), EFAULT);
	FAILS(read(link.kcm, null, negative), EFAULT);
	FAILS(write(link.kcm, anywhere, size_max), EFAULT);
	FAILS(send(link.kcm, (void *)-4096L, size_max, 0), EFAULT);
	struct iovec huge = {buf, SIZE_MAX};
	struct msghdr header = {.msg_iov = &huge, .msg_iovlen = 1};
	FAILS(readv(link.kcm, &huge, 1), EINVAL);
	FAILS(recvmsg(link.kcm, &header, 0), EINVAL);
	header.msg_iovlen = 1025;
	FAILS(recvmsg(link.kcm, &header, 0), EMSGSIZE);
	header.msg_name = buf;
	header.msg_namelen = (socklen_t)-1;
	FAILS(recvmsg(link.kcm, &header, 0), EINVAL);
	CHECK(recv(link.kcm, buf, 64, 0) == 8 && memcmp(buf, "message1", 8) == 0);
	ended(link);
}

/* What recvmsg and recvmmsg write to their headers, and what they leave alone. */
static void headers(void)
{
	struct link link = linked(SOCK_DGRAM);
	char buf[64], name[16], control[16];
	struct iovec room = {buf, sizeof buf};
	CHECK(write(link.peer, "message1message2message3message4", 32) == 32);
	CHECK(ready(link.kcm, POLLIN, 10000));
	struct msghdr header = {name, sizeof name, &room, 1, control, sizeof control, -1};
	CHECK(recvmsg(link.kcm, &header, 0) == 8);
	CHECK(header.msg_name == name && header.msg_namelen == 0 && header.msg_iov == &room);
	CHECK(header.msg_iovlen == 1 && header.msg_control == control);
	CHECK(header.msg_controllen == 0 && header.msg_flags == MSG_EOR);
	header = (struct msghdr){NULL, 77, &room, 1, NULL, 0, -1};
	CHECK(recvmsg(link.kcm, &header, 0) == 8 && header.msg_namelen == 77);

	/* Headers that can be read but not written: the message is gone when that is found. */
	struct msghdr *fixed = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*fixed = header;
	CHECK(mprotect(fixed, 4096, PROT_READ) == 0);
	FAILS(recvmsg(link.kcm, fixed, 0), EFAULT);
	CHECK(recv(link.kcm, buf, 64, 0) == 8 && memcmp(buf, "message4", 8) == 0);

	/* An array of which only the first entries are memory. */
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(munmap(pages + 4096, 4096) == 0);
	struct mmsghdr *entries = (struct mmsghdr *)(pages + 4096) - 2;
	for (int i = 0; i < 2; i++)
		entries[i].msg_hdr = (struct msghdr){.msg_iov = &room, .msg_iovlen = 1};
	CHECK(write(link.peer, "message5message6message7", 24) == 24);
	CHECK(ready(link.kcm, POLLIN, 10000));
	CHECK(recvmmsg(link.kcm, entries, 1024, DW, NULL) == 2);
	CHECK(entries[0].msg_len == 8 && entries[1].msg_len == 8);
	FAILS(recvmmsg(link.kcm, entries + 2, 4, DW, NULL), EFAULT);
	CHECK(recv(link.kcm, buf, 64, 0) == 8 && memcmp(buf, "message7", 8) == 0);
	munmap(pages, 4096);
	munmap(fixed, 4096);
	ended(link);
}

/* Memory that was good for one receive is gone for the next: EFAULT, no signal. */
static void memory_taken(void)
{
	struct link link = linked(SOCK_DGRAM);
	size_t page = 4096;
	int any = PROT_READ | PROT_WRITE;
	for (int how = 0; how < 9; how++) {
		int file = memfd_create("file", 0);
		CHECK(ftruncate(file, (off_t)page) == 0);
		char *at = mmap(NULL, page, any, MAP_SHARED, file, 0), *heap = NULL;
		if (how == 6) {
			heap = sbrk((intptr_t)(2 * page));
			at = (char *)(((uintptr_t)heap + page - 1) & ~(page - 1));
		}
		CHECK(write(link.peer, "message1message2", 16) == 16);
		CHECK(ready(link.kcm, POLLIN, 10000));
		CHECK(recv(link.kcm, at, 64, 0) == 8 && memcmp(at, "message1", 8) == 0);
		switch (how) {
		case 0: CHECK(munmap(at, page) == 0); break;
		case 1: CHECK(mprotect(at, page, PROT_READ) == 0); break;
		case 2: CHECK(ftruncate(file, 0) == 0); break;
		case 3: CHECK(mmap(at, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at); break;
		case 4: CHECK(mremap(at, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, at + (64 << 20)) != MAP_FAILED); break;
		case 5: {
			char path[64];
			snprintf(path, sizeof path, "/proc/self/fd/%d", file);
			CHECK(truncate(path, 0) == 0);
			break;
		}
		case 6: CHECK(sbrk(-(intptr_t)(2 * page)) != (void *)-1); break;
		case 7: CHECK(syscall(SYS_munmap, at, page) == 0); break;
		case 8: CHECK(pkey_mprotect(at, page, PROT_READ, -1) == 0); break;
		}
		FAILS(recv(link.kcm, at, 64, 0), EFAULT);
		close(file);
	}
	int id = shmget(IPC_PRIVATE, page, 0600);
	if (id >= 0) {
		char *at = shmat(id, NULL, 0);
		shmctl(id, IPC_RMID, NULL);
		CHECK(write(link.peer, "message1message2", 16) == 16);
		CHECK(ready(link.kcm, POLLIN, 10000));
		CHECK(recv(link.kcm, at, 64, 0) == 8 && shmdt(at) == 0);
		FAILS(recv(link.kcm, at, 64, 0), EFAULT);
	}
	ended(link);
}

int main(void)
{
	hang_guard("hooks_calls");
	second_names();
	formatted(SOCK_DGRAM);
	formatted(SOCK_SEQPACKET);
	streams();
	raw_calls();
	stale_numbers();
	impossible_buffers(SOCK_DGRAM);
	impossible_buffers(SOCK_SEQPACKET);
	headers();
	memory_taken();
	return 0;
}
