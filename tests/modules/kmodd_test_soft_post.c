// SPDX-License-Identifier: GPL-2.0
/* Loaded after soft by its soft dependency. */
#include <linux/module.h>

static int __init soft_post_init(void)
{
	return 0;
}

static void __exit soft_post_exit(void)
{
}

module_init(soft_post_init);
module_exit(soft_post_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Loaded after soft by its soft dependency");
