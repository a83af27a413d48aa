// SPDX-License-Identifier: GPL-2.0
/* Shares the alias kmodd-test-shared with alias_twin2, so that it names two modules. */
#include <linux/module.h>

static int __init alias_twin_init(void)
{
	return 0;
}

static void __exit alias_twin_exit(void)
{
}

module_init(alias_twin_init);
module_exit(alias_twin_exit);

MODULE_ALIAS("kmodd-test-shared");

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Shares the alias kmodd-test-shared with alias_twin2, so that it names two modules");
