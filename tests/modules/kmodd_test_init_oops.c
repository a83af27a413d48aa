// SPDX-License-Identifier: GPL-2.0
/* init() writes through a null pointer: the kernel kills the process that loads it. */
#include <linux/module.h>

static int *volatile nowhere;

static int __init init_oops_init(void)
{
	*nowhere = 1;
	return 0;
}

static void __exit init_oops_exit(void)
{
}

module_init(init_oops_init);
module_exit(init_oops_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("init() writes through a null pointer: the kernel kills the process that loads it");
