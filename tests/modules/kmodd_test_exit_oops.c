// SPDX-License-Identifier: GPL-2.0
/* exit() writes through a null pointer: the kernel kills the process that unloads it. */
#include <linux/module.h>

static int *volatile nowhere;

static int __init exit_oops_init(void)
{
	return 0;
}

static void __exit exit_oops_exit(void)
{
	*nowhere = 1;
}

module_init(exit_oops_init);
module_exit(exit_oops_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("exit() writes through a null pointer: the kernel kills the process that unloads it");
