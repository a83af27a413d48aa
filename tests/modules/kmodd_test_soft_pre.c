// SPDX-License-Identifier: GPL-2.0
/* Loaded before soft by its soft dependency. */
#include <linux/module.h>

static int __init soft_pre_init(void)
{
	return 0;
}

static void __exit soft_pre_exit(void)
{
}

module_init(soft_pre_init);
module_exit(soft_pre_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Loaded before soft by its soft dependency");
