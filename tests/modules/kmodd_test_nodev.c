// SPDX-License-Identifier: GPL-2.0
/* init() answers ENODEV without a word, as drivers without their hardware do. */
#include <linux/module.h>

static int __init nodev_init(void)
{
	return -ENODEV;
}

static void __exit nodev_exit(void)
{
}

module_init(nodev_init);
module_exit(nodev_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("init() answers ENODEV without a word, as drivers without their hardware do");
