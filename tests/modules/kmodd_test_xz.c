// SPDX-License-Identifier: GPL-2.0
/* Installed compressed with xz. */
#include <linux/module.h>

static int __init xz_init(void)
{
	return 0;
}

static void __exit xz_exit(void)
{
}

module_init(xz_init);
module_exit(xz_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Installed compressed with xz");
