// SPDX-License-Identifier: GPL-2.0
/* The bottom of a chain: dep_c needs dep_b needs dep_a. */
#include <linux/module.h>

int kmodd_test_dep_a_value(void)
{
	return 1;
}
EXPORT_SYMBOL_GPL(kmodd_test_dep_a_value);

static int __init dep_a_init(void)
{
	return 0;
}

static void __exit dep_a_exit(void)
{
}

module_init(dep_a_init);
module_exit(dep_a_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("The bottom of a chain: dep_c needs dep_b needs dep_a");
