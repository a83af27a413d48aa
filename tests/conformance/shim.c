// SPDX-License-Identifier: LGPL-2.1-or-later
/* Preloaded into modprobe: gives it a /sys/module and a /proc/cmdline of the test's own, and writes down what it calls.
 *
 * SHIM_STATE is a folder: `cmdline`, `module/NAME/{initstate,refcnt}` for what is loaded, `needs/NAME` with the modules whose
 * symbols NAME uses, one a line, `blacklist` with the names the kernel itself refuses, and `log`, where the calls go. A record
 * of the log is `KIND\x1fRESULT\x1fNAME\x1fTEXT\x1e`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static char last_module[PATH_MAX];

/* `modprobe -r` recurses without end where soft dependencies form a circle, and should not take long about it. */
__attribute__((constructor)) static void limit(void)
{
	const struct rlimit stack = { 256 << 10, 256 << 10 }, core = { 0, 0 };
	setrlimit(RLIMIT_STACK, &stack);
	setrlimit(RLIMIT_CORE, &core);
}

static const char *state(void)
{
	const char *folder = getenv("SHIM_STATE");
	if (!folder)
		abort();
	return folder;
}

/* Where the test keeps what modprobe asks for; remembers the module file that was opened last. */
static const char *moved(const char *path, char *out)
{
	if (strcmp(path, "/proc/cmdline") == 0) {
		snprintf(out, PATH_MAX, "%s/cmdline", state());
		return out;
	}
	if (strncmp(path, "/sys/module", 11) == 0) {
		snprintf(out, PATH_MAX, "%s/module%s", state(), path + 11);
		return out;
	}
	if (strstr(path, ".ko") && strlen(path) < sizeof(last_module))
		strcpy(last_module, path);
	return path;
}

#define OPEN(name)                                                                     \
	int name(const char *path, int flags, ...)                                     \
	{                                                                              \
		NEXT(name);                                                            \
		char buffer[PATH_MAX];                                                 \
		mode_t mode = 0;                                                       \
		if (flags & (O_CREAT | O_TMPFILE)) {                                   \
			va_list rest;                                                  \
			va_start(rest, flags);                                         \
			mode = va_arg(rest, mode_t);                                   \
			va_end(rest);                                                  \
		}                                                                      \
		return next(moved(path, buffer), flags, mode);                         \
	}
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                   \
	int name(int folder, const char *path, int flags, ...)                         \
	{                                                                              \
		NEXT(name);                                                            \
		char buffer[PATH_MAX];                                                 \
		mode_t mode = 0;                                                       \
		if (flags & (O_CREAT | O_TMPFILE)) {                                   \
			va_list rest;                                                  \
			va_start(rest, flags);                                         \
			mode = va_arg(rest, mode_t);                                   \
			va_end(rest);                                                  \
		}                                                                      \
		return next(folder, moved(path, buffer), flags, mode);                 \
	}
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                    \
	FILE *name(const char *path, const char *mode)                                 \
	{                                                                              \
		NEXT(name);                                                            \
		char buffer[PATH_MAX];                                                 \
		return next(moved(path, buffer), mode);                                \
	}
FOPEN(fopen)
FOPEN(fopen64)

int stat(const char *path, struct stat *out)
{
	NEXT(stat);
	char buffer[PATH_MAX];
	return next(moved(path, buffer), out);
}

int stat64(const char *path, struct stat64 *out)
{
	NEXT(stat64);
	char buffer[PATH_MAX];
	return next(moved(path, buffer), out);
}

int access(const char *path, int mode)
{
	NEXT(access);
	char buffer[PATH_MAX];
	return next(moved(path, buffer), mode);
}

DIR *opendir(const char *path)
{
	NEXT(opendir);
	char buffer[PATH_MAX];
	return next(moved(path, buffer));
}

static void note(const char *kind, int result, const char *name, const char *text)
{
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s/log", state());
	FILE *log = fopen(path, "ae");
	if (!log)
		abort();
	fprintf(log, "%s\x1f%d\x1f%s\x1f%s\x1e", kind, result, name, text);
	fclose(log);
}

static int read_number(const char *name, int missing)
{
	char path[PATH_MAX];
	int number = missing;
	snprintf(path, sizeof(path), "%s/module/%s/refcnt", state(), name);
	FILE *file = fopen(path, "re");
	if (!file)
		return missing;
	if (fscanf(file, "%d", &number) != 1)
		number = missing;
	fclose(file);
	return number;
}

static void write_text(const char *name, const char *file, const char *text)
{
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "%s/module/%s/%s", state(), name, file);
	FILE *out = fopen(path, "we");
	if (!out)
		abort();
	fputs(text, out);
	fclose(out);
}

/* Change the use counts of what the module needs; with `change` 0, tell whether all of it is there. */
static int use(const char *name, int change)
{
	char path[PATH_MAX], need[NAME_MAX + 2], number[32];
	int whole = 1;
	snprintf(path, sizeof(path), "%s/needs/%s", state(), name);
	FILE *file = fopen(path, "re");
	if (!file)
		return 1;
	while (fgets(need, sizeof(need), file)) {
		need[strcspn(need, "\n")] = 0;
		int count = read_number(need, -1);
		if (count < 0) {
			whole = 0;
		} else if (change) {
			snprintf(number, sizeof(number), "%d\n", count + change);
			write_text(need, "refcnt", number);
		}
	}
	fclose(file);
	return whole;
}

static int is_listed(const char *list, const char *name)
{
	char path[PATH_MAX], line[NAME_MAX + 2];
	int listed = 0;
	snprintf(path, sizeof(path), "%s/%s", state(), list);
	FILE *file = fopen(path, "re");
	if (!file)
		return 0;
	while (!listed && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = 0;
		listed = strcmp(line, name) == 0;
	}
	fclose(file);
	return listed;
}

static long insert(const char *path, const char *parameters)
{
	char name[NAME_MAX + 1], folder[PATH_MAX];
	const char *base = strrchr(path, '/');
	snprintf(name, sizeof(name), "%s", base ? base + 1 : path);
	name[strcspn(name, ".")] = 0;
	for (char *letter = name; *letter; letter++)
		if (*letter == '-')
			*letter = '_';
	int fault = 0;
	if (is_listed("blacklist", name))
		fault = EPERM;
	else if (read_number(name, -1) >= 0)
		fault = EEXIST;
	else if (!use(name, 0))
		fault = ENOENT;
	note("insert", fault, name, parameters);
	if (fault) {
		errno = fault;
		return -1;
	}
	snprintf(folder, sizeof(folder), "%s/module/%s", state(), name);
	mkdir(folder, 0755);
	write_text(name, "initstate", "live\n");
	write_text(name, "refcnt", "0\n");
	use(name, 1);
	return 0;
}

int init_module(const void *image, unsigned long size, const char *parameters)
{
	(void)image;
	(void)size;
	return insert(last_module, parameters);
}

int delete_module(const char *name, unsigned flags)
{
	char path[PATH_MAX];
	(void)flags;
	int count = read_number(name, -1), fault = count < 0 ? ENOENT : count > 0 ? EAGAIN : 0;
	note("remove", fault, name, "");
	if (fault) {
		errno = fault;
		return -1;
	}
	use(name, -1);
	for (int file = 0; file < 2; file++) {
		snprintf(path, sizeof(path), "%s/module/%s/%s", state(), name, file ? "refcnt" : "initstate");
		unlink(path);
	}
	snprintf(path, sizeof(path), "%s/module/%s", state(), name);
	rmdir(path);
	return 0;
}

long syscall(long number, ...)
{
	NEXT(syscall);
	long a[6];
	va_list rest;
	va_start(rest, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(rest, long);
	va_end(rest);
	if (number == SYS_finit_module) {
		char link[64], path[PATH_MAX];
		snprintf(link, sizeof(link), "/proc/self/fd/%ld", a[0]);
		ssize_t length = readlink(link, path, sizeof(path) - 1);
		if (length < 0)
			abort();
		path[length] = 0;
		return insert(path, (const char *)a[1]);
	}
	if (number == SYS_init_module || number == SYS_delete_module)
		abort();
	return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Runs nothing. What a shell would make of the refusals that the tests use is known. */
int system(const char *command)
{
	const char *word = command + strspn(command, " \t");
	const char *module = getenv("MODPROBE_MODULE");
	int refuses = strstr(word, "false") != NULL;
	if (strncmp(word, "exit", 4) == 0)
		refuses = word[4 + strspn(word + 4, " \t")] == '1';
	note("command", refuses, module ? module : "", command);
	return refuses ? 1 << 8 : 0;
}
