/* guest_proc.h: /proc/net/kcm and /proc/net/kcm_stats for the lane programs. */
#ifndef GUEST_PROC_H
#define GUEST_PROC_H

/* The whole file, by open and read; the buffer is reused by the next call of this header. */
char *proc_read(const char *path);
/* Whether fopen and fread show what open and read show. */
int proc_same_by_stdio(const char *path);
/* Every mux, KCM socket and psock line, without buffer charges and mux counters. */
void show_kcm(void);
/* The two header lines. */
void show_kcm_header(void);
/* The header lines of kcm_stats. */
void show_stats_header(void);
/* One column ("MUX" or "Psock"), a running total; -1 when absent. */
long kcm_stat(const char *object, const char *column);

#endif
