// shapes.hpp: the family's published shapes, and a folder that has one of them but no weights.
//
// The folder holds config.json, generation_config.json and a vocabulary of invented words: all that
// an engine with the option `weights` = "random" reads. It goes away with its object.
#pragma once

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>

namespace bench {

struct Shape {
    const char *name;
    int layers, hidden, heads;
    /// Gate and up together, as config.json counts.
    int two_widths;
    int vocab_rows, ranks;
    int train_tokens;
    double rope_base;
    /// Dynamic NTK and log-n attention.
    bool stretched;
};

/// As in the config.json of each published checkpoint; `tiny` is for trying the program out.
inline const Shape SHAPES[] = {
    {"qwen-72b", 80, 8192, 64, 49152, 152064, 151643, 32768, 1e6, false},
    {"14b", 40, 5120, 40, 27392, 152064, 151643, 2048, 1e4, true},
    {"7b", 32, 4096, 32, 22016, 151936, 151643, 8192, 1e4, true},
    {"1.8b", 24, 2048, 16, 11008, 151936, 151643, 8192, 1e4, true},
    {"tiny", 4, 512, 4, 2816, 2048, 1700, 32768, 1e6, false},
};

inline const Shape &find_shape(const std::string &name) {
    for (const Shape &shape : SHAPES)
        if (name == shape.name || name == std::string("qwen-") + shape.name ||
            std::string("qwen-") + name == shape.name)
            return shape;
    throw std::runtime_error("--shape: `" + name + "` is not qwen-72b, 14b, 7b, 1.8b or tiny");
}

/// Bits of a code in a quantised format; 0 for others.
inline int quantised_bits(const std::string &format) {
    return format == "int4" ? 4 : format == "int8" ? 8 : 0;
}

inline std::string base64(const std::string &bytes) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t at = 0; at < bytes.size(); at += 3) {
        unsigned bits = 0;
        for (std::size_t i = at; i < at + 3; i++)
            bits = bits << 8 | (i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u);
        for (std::size_t i = 0; i < 4; i++)
            text += at + i > bytes.size() ? '=' : DIGITS[bits >> (18 - 6 * i) & 63];
    }
    return text;
}

/// Token `rank`: the 256 bytes first, then a blank and four letters.
inline std::string token(int rank) {
    if (rank < 256)
        return std::string(1, static_cast<char>(rank));
    std::string word = " ";
    for (int rest = rank, i = 0; i < 4; i++, rest /= 26)
        word += static_cast<char>('a' + rest % 26);
    return word;
}

class ModelFolder {
  public:
    /// `format`: bf16, fp16, int8 or int4; the last two as the published GPTQ checkpoints, groups of
    /// 128 and no zero points.
    ModelFolder(const Shape &shape, const std::string &format, int layers) {
        const auto place = std::filesystem::temp_directory_path() / "qwen-bench-XXXXXX";
        std::string pattern = place.string();
        if (!mkdtemp(pattern.data()))
            throw std::system_error(errno, std::generic_category(), pattern);
        path_ = pattern;
        write("config.json", config(shape, format, layers));
        write("generation_config.json", "{\"chat_format\": \"chatml\", \"eos_token_id\": " +
                                            std::to_string(shape.ranks) + "}\n");
        std::string vocabulary;
        for (int rank = 0; rank < shape.ranks; rank++)
            vocabulary += base64(token(rank)) + " " + std::to_string(rank) + "\n";
        write("qwen.tiktoken", vocabulary);
    }
    ModelFolder(const ModelFolder &) = delete;
    ModelFolder &operator=(const ModelFolder &) = delete;
    ~ModelFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    std::string path() const { return path_.string(); }

  private:
    void write(const char *name, const std::string &text) const {
        std::ofstream file(path_ / name, std::ios::binary);
        if (!(file << text).flush())
            throw std::runtime_error("cannot write " + (path_ / name).string());
    }

    static std::string config(const Shape &shape, const std::string &format, int layers) {
        std::string json = "{\"architectures\": [\"QWenLMHeadModel\"], \"model_type\": \"qwen\"";
        const auto field = [&](const char *key, const std::string &value) {
            json += std::string(", \"") + key + "\": " + value;
        };
        const auto flag = [](bool value) { return std::string(value ? "true" : "false"); };
        field("num_hidden_layers", std::to_string(layers ? layers : shape.layers));
        field("hidden_size", std::to_string(shape.hidden));
        field("num_attention_heads", std::to_string(shape.heads));
        field("kv_channels", std::to_string(shape.hidden / shape.heads));
        field("intermediate_size", std::to_string(shape.two_widths));
        field("vocab_size", std::to_string(shape.vocab_rows));
        field("seq_length", std::to_string(shape.train_tokens));
        field("rotary_emb_base", std::to_string(shape.rope_base));
        field("layer_norm_epsilon", "1e-6");
        field("use_dynamic_ntk", flag(shape.stretched));
        field("use_logn_attn", flag(shape.stretched));
        const int bits = quantised_bits(format);
        field("bf16", flag(format == "bf16"));
        field("fp16", flag(format == "fp16" || bits));
        if (bits)
            field("quantization_config", "{\"quant_method\": \"gptq\", \"bits\": " +
                                             std::to_string(bits) +
                                             ", \"group_size\": 128, \"desc_act\": false, "
                                             "\"sym\": true}");
        return json + "}\n";
    }

    std::filesystem::path path_;
};

} // namespace bench
