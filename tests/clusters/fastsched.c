/* LD_PRELOAD for slurmctld in tests: its scheduling loop sleeps ten times 100 ms between two looks at the queue.
 * With ten times 2 ms a job starts 50 ms after its sbatch instead of half a second, on the unchanged slurmctld. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

int usleep(useconds_t us)
{
    static int (*libc_usleep)(useconds_t);

    if (!libc_usleep)
        libc_usleep = (int (*)(useconds_t))dlsym(RTLD_NEXT, "usleep");
    return libc_usleep(us == 100000 ? 2000 : us);
}
