// SPDX-License-Identifier: GPL-2.0
/* Has every field modinfo can show, and aliases with a plain name and with wildcards. */
#include <linux/module.h>

static int __init info_init(void)
{
	return 0;
}

static void __exit info_exit(void)
{
}

module_init(info_init);
module_exit(info_exit);

MODULE_AUTHOR("Ada Lovelace <ada@example.org>");
MODULE_AUTHOR("Grace Hopper");
MODULE_VERSION("1.2.3-test");
MODULE_FIRMWARE("kmodd-test/firmware.bin");
MODULE_ALIAS("kmodd-test-alias");
MODULE_ALIAS("test:v0001p*d*");
MODULE_INFO(kmodd_note, "a field nobody knows");

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Has every field modinfo can show, and aliases with a plain name and with wildcards");
