/* utf8.h: is this text whole UTF-8 characters? Written from the definition, not from the library.
 */
#ifndef UTF8_H
#define UTF8_H

#include <stdint.h>

static inline int is_utf8(const char *text, uint64_t length) {
    const unsigned char *at = (const unsigned char *)text, *end = at + length;
    while (at < end) {
        const unsigned lead = *at++;
        const int more = lead < 0x80 ? 0 : lead < 0xC2 ? -1 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        uint32_t point = lead;
        if (more < 0 || lead > 0xF4 || end - at < more)
            return 0;
        if (more > 0)
            point = lead & (0x3Fu >> more);
        for (int index = 0; index < more; ++index, ++at) {
            if ((*at & 0xC0) != 0x80)
                return 0;
            point = point << 6 | (*at & 0x3Fu);
        }
        if ((more == 2 && point < 0x800) || (more == 3 && (point < 0x10000 || point > 0x10FFFF)))
            return 0;
        if (point >= 0xD800 && point < 0xE000)
            return 0;
    }
    return 1;
}

#endif
