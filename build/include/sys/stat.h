/*
 * C compilers find this before the system's <sys/stat.h> (see .cargo/config.toml).
 *
 * The liburing that glommio 0.9 bundles needs `struct open_how`. Its configure script looks for one in <fcntl.h>, which has
 * it since glibc 2.43, and then defines none; but its header includes only <sys/stat.h>. With the kernel's definition here,
 * the script and the header agree, whatever libc and kernel headers are installed. A glommio whose liburing compiles
 * without this file makes it superfluous: tests/fresh/run.sh tells.
 */
#pragma GCC system_header
#include_next <sys/stat.h>
#if __has_include(<linux/openat2.h>)
#include <linux/openat2.h>
#endif
