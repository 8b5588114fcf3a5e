// A kernel of this folder is compiled once for each value of BUG: 0 is right, each other number plants one mistake.
#pragma once
#define JOIN_TEXT(a, b) a##b
#define JOIN(a, b) JOIN_TEXT(a, b)
#define VARIANT(name) JOIN(name, BUG)
#define EXPORT_VARIANT(k) TWIN_EXPORT(k)
