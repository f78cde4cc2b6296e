/* guest_proc.c: reads /proc/net/kcm and /proc/net/kcm_stats, checks their layout byte for byte and
 * prints what does not depend on buffer memory. */
#include "guest.h"
#include "guest_proc.h"

#define STAT_LINES 4
/* Where the status words of a line begin. */
#define STATUS_COLUMN 107

static char text[1 << 16];

char *proc_read(const char *path)
{
	size_t len = 0;
	ssize_t got;
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		say("open %s = %s", path, errno_name(errno));
	while (fd >= 0 && (got = read(fd, text + len, sizeof text - 1 - len)) > 0)
		len += got;
	if (fd >= 0)
		close(fd);
	text[len] = 0;
	return text;
}

int proc_same_by_stdio(const char *path)
{
	static char again[sizeof text];
	proc_read(path);
	FILE *f = fopen(path, "r");
	if (!f)
		return 0;
	again[fread(again, 1, sizeof again - 1, f)] = 0;
	fclose(f);
	return !strcmp(text, again);
}

static void show_mux(const char *line)
{
	unsigned long n[4];
	char status[128], again[256];
	if (sscanf(line, "mux %lu %lu %lu %lu - - - - %127[^\n]", &n[0], &n[1], &n[2], &n[3], status) != 5) {
		say("unreadable: '%s'", line);
		return;
	}
	snprintf(again, sizeof again, "%-6s%-8s %-10lu %-16lu %-10lu %-16lu %-8s %-8s %-8s %-8s %s", "mux", "",
		n[0], n[1], n[2], n[3], "-", "-", "-", "-", status);
	if (strcmp(again, line))
		say("layout: '%s'", line);
	say("mux '%s'", status);
}

static void show_member(const char *line)
{
	unsigned long n[4];
	char kind[8], index[16], q[4][16], again[256];
	const char *status;
	int is_kcm;
	if (sscanf(line, " %7[a-z]-%15s %lu %lu %lu %lu %15s %15s %15s %15s", kind, index,
			&n[0], &n[1], &n[2], &n[3], q[0], q[1], q[2], q[3]) != 10) {
		say("unreadable: '%s'", line);
		return;
	}
	is_kcm = !strcmp(kind, "kcm");
	status = line + (strlen(line) > STATUS_COLUMN ? STATUS_COLUMN : strlen(line));
	snprintf(again, sizeof again, "   %s-%-*s %-10lu %-16lu %-10lu %-16lu %-8s %-8s %-8s %-8s %s", kind,
		is_kcm ? 7 : 5, index, n[0], n[1], n[2], n[3], q[0], q[1], q[2], q[3], status);
	if (strcmp(again, line))
		say("layout: '%s'", line);
	if (is_kcm)
		say("kcm-%s rx %lu/%lu tx %lu/%lu recv-q %s send-q %s smem %s '%s'", index,
			n[0], n[1], n[2], n[3], q[0], q[2], q[3], status);
	else
		say("psock-%s rx %lu/%lu tx %lu/%lu '%s'", index, n[0], n[1], n[2], n[3], status);
}

void show_kcm(void)
{
	char *line, *rest;
	proc_read("/proc/net/kcm");
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		if (!strncmp(line, "mux", 3))
			show_mux(line);
		else if (!strncmp(line, "   ", 3))
			show_member(line);
}

void show_kcm_header(void)
{
	char *line, *rest;
	proc_read("/proc/net/kcm");
	line = strtok_r(text, "\n", &rest);
	for (int i = 0; line && i < 2; i++, line = strtok_r(NULL, "\n", &rest))
		say("'%s'", line);
}

long kcm_stat(const char *object, const char *column)
{
	char *line[STAT_LINES] = {0}, *rest, *names_rest, *values_rest;
	proc_read("/proc/net/kcm_stats");
	for (char *l = strtok_r(text, "\n", &rest), **to = line; l && to < line + STAT_LINES; l = strtok_r(NULL, "\n", &rest))
		*to++ = l;
	for (int i = 0; i + 1 < STAT_LINES && line[i] && line[i + 1]; i += 2) {
		char *name = strtok_r(line[i], " ", &names_rest);
		if (!name || strcmp(name, object))
			continue;
		name = strtok_r(NULL, " ", &names_rest);
		char *value = strtok_r(line[i + 1], " ", &values_rest);
		while (name && value) {
			if (!strcmp(name, column))
				return atol(value);
			name = strtok_r(NULL, " ", &names_rest);
			value = strtok_r(NULL, " ", &values_rest);
		}
	}
	return -1;
}

void show_stats_header(void)
{
	char *line, *rest;
	proc_read("/proc/net/kcm_stats");
	line = strtok_r(text, "\n", &rest);
	for (int i = 0; line && i < STAT_LINES; i++, line = strtok_r(NULL, "\n", &rest))
		say("%zu characters '%s'", strlen(line), i % 2 ? "values" : line);
}
