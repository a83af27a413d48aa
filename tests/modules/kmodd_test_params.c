// SPDX-License-Identifier: GPL-2.0
/* A parameter of every type and mode; level accepts 0 to 9 only and keeps even numbers. */
#include <linux/module.h>

static bool a_bool;
module_param(a_bool, bool, 0644);
MODULE_PARM_DESC(a_bool, "a bool");

static bool an_invbool;
module_param(an_invbool, invbool, 0644);
MODULE_PARM_DESC(an_invbool, "a bool that is kept inverted");

static u8 a_byte = 1;
module_param(a_byte, byte, 0644);
MODULE_PARM_DESC(a_byte, "a byte");

static short a_short = -2;
module_param(a_short, short, 0644);
MODULE_PARM_DESC(a_short, "a short");

static ushort a_ushort = 2;
module_param(a_ushort, ushort, 0644);
MODULE_PARM_DESC(a_ushort, "an unsigned short");

static int an_int = -3;
module_param(an_int, int, 0644);
MODULE_PARM_DESC(an_int, "an int");

static uint a_uint = 3;
module_param(a_uint, uint, 0644);
MODULE_PARM_DESC(a_uint, "an unsigned int");

static long a_long = -4;
module_param(a_long, long, 0644);
MODULE_PARM_DESC(a_long, "a long");

static ulong a_ulong = 4;
module_param(a_ulong, ulong, 0644);
MODULE_PARM_DESC(a_ulong, "an unsigned long");

static unsigned long long a_ullong = 5;
module_param(a_ullong, ullong, 0644);
MODULE_PARM_DESC(a_ullong, "an unsigned long long");

static unsigned int a_hexint = 0x1f;
module_param(a_hexint, hexint, 0644);
MODULE_PARM_DESC(a_hexint, "an unsigned int shown in hexadecimal");

static char *a_charp = "nothing";
module_param(a_charp, charp, 0644);
MODULE_PARM_DESC(a_charp, "a text of any length");

static char a_string[16] = "short";
module_param_string(a_string, a_string, sizeof(a_string), 0644);
MODULE_PARM_DESC(a_string, "a text of at most 15 characters");

static int an_array[4] = { 1, 2 };
static int an_array_used = 2;
module_param_array(an_array, int, &an_array_used, 0644);
MODULE_PARM_DESC(an_array, "one to four ints");

static char *charps[3];
static int charps_used;
module_param_array(charps, charp, &charps_used, 0444);
MODULE_PARM_DESC(charps, "up to three texts");

static int read_only = 6;
module_param(read_only, int, 0444);
MODULE_PARM_DESC(read_only, "can be given when loading, not changed later");

static int secret = 7;
module_param(secret, int, 0600);
MODULE_PARM_DESC(secret, "for root's eyes only");

static int root_read_only = 8;
module_param(root_read_only, int, 0400);
MODULE_PARM_DESC(root_read_only, "for root's eyes only, not changed later");

static int hidden = 9;
module_param(hidden, int, 0);
MODULE_PARM_DESC(hidden, "has no file");

static int without_description = 10;
module_param(without_description, int, 0644);

static int level = 4;

/* 0 to 9, anything else is refused; odd numbers become the even one below. */
static int level_set(const char *text, const struct kernel_param *parameter)
{
	int value, result = kstrtoint(text, 10, &value);

	if (result)
		return result;
	if (value < 0 || value > 9) {
		pr_warn("kmodd_test_params: level %d is not between 0 and 9\n", value);
		return -ERANGE;
	}
	level = value & ~1;
	return 0;
}

static const struct kernel_param_ops level_ops = { .set = level_set, .get = param_get_int };
module_param_cb(level, &level_ops, &level, 0644);
__MODULE_PARM_TYPE(level, "int");
MODULE_PARM_DESC(level, "0 to 9, kept even");

static int __init params_init(void)
{
	if (hidden < 0 || without_description < 0)
		return -EINVAL;
	return 0;
}

static void __exit params_exit(void)
{
}

module_init(params_init);
module_exit(params_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A parameter of every type and mode; level accepts 0 to 9 only and keeps even numbers");
