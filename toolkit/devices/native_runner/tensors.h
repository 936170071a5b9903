// Tensors of examples: NumPy's .npy files, and a list of them.
//
// A folder of examples holds `examples.txt`, with lines of fields between tabs:
//
//     example <signature>           an example begins; only LiteRT files have signatures
//     tensor  <name>  <file>        an input or an output of it, in a .npy file of the folder
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Tensor {
  std::string name;
  std::string type;  // NumPy's code without the byte order: f4, i8, u1, …
  std::vector<int64_t> shape;
  std::vector<char> bytes;
};

struct Example {
  std::string signature;
  std::vector<Tensor> tensors;
};

// A type as NumPy, ONNX Runtime and LiteRT call it, and the bytes of a value. 0: it is not known there.
struct Type {
  const char* name;
  int onnx, litert;
  size_t size;
};

inline constexpr Type TYPES[] = {
    {"f4", 1, 1, 4}, {"u1", 2, 3, 1}, {"i1", 3, 9, 1}, {"u2", 4, 17, 2}, {"i2", 5, 7, 2},  {"i4", 6, 2, 4},
    {"i8", 7, 4, 8}, {"b1", 9, 6, 1}, {"f2", 10, 10, 2}, {"f8", 11, 11, 8}, {"u4", 12, 16, 4}, {"u8", 13, 13, 8},
};

inline const Type& type_where(int Type::*code, int value) {
  for (const Type& type : TYPES)
    if (type.*code == value) return type;
  throw std::runtime_error("a tensor has the type " + std::to_string(value) + ", which is not known here");
}

inline const Type& type_named(const std::string& name) {
  for (const Type& type : TYPES)
    if (name == type.name) return type;
  throw std::runtime_error("a tensor has the type " + name + ", which is not known here");
}

inline size_t bytes_of(const Type& type, const std::vector<int64_t>& shape) {
  size_t count = type.size;
  for (int64_t size : shape) {
    if (size < 0) throw std::runtime_error("a tensor's shape is not fixed");
    count *= static_cast<size_t>(size);
  }
  return count;
}

// The text behind `'key':` in the header of a .npy file.
inline std::string npy_field(const std::string& header, const std::string& key) {
  size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) throw std::runtime_error("a .npy file has no " + key);
  return header.substr(at + key.size() + 3);
}

inline Tensor read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char start[10] = {};
  file.read(start, sizeof start);
  if (!file || std::memcmp(start, "\x93NUMPY\x01", 7) != 0)
    throw std::runtime_error(path + " is no .npy file of version 1");
  std::string header((static_cast<unsigned char>(start[9]) << 8) | static_cast<unsigned char>(start[8]), ' ');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  std::string descr = npy_field(header, "descr"), order = npy_field(header, "fortran_order");
  std::string sizes = npy_field(header, "shape");
  size_t quote = descr.find('\''), open = sizes.find('('), close = sizes.find(')');
  bool whole = file && quote != std::string::npos && open != std::string::npos && close != std::string::npos;
  if (!whole || order.find("False") > 1 || descr[quote + 1] == '>')
    throw std::runtime_error(path + " is no array that is known here");
  Tensor tensor;
  tensor.type = descr.substr(quote + 2, 2);
  std::istringstream list(sizes.substr(open + 1, close - open - 1));
  for (std::string size; std::getline(list, size, ',');)
    if (size.find_first_of("0123456789") != std::string::npos) tensor.shape.push_back(std::stoll(size));
  tensor.bytes.resize(bytes_of(type_named(tensor.type), tensor.shape));
  file.read(tensor.bytes.data(), static_cast<std::streamsize>(tensor.bytes.size()));
  if (!file) throw std::runtime_error(path + " ends too early");
  return tensor;
}

inline void write_npy(const std::string& path, const Tensor& tensor) {
  std::ostringstream header;
  header << "{'descr': '" << (tensor.type[1] == '1' ? '|' : '<') << tensor.type << "', 'fortran_order': False, 'shape': (";
  for (int64_t size : tensor.shape) header << size << ",";
  header << "), }";
  std::string text = header.str();
  text.append(63 - (10 + text.size()) % 64, ' ').push_back('\n');
  std::ofstream file(path, std::ios::binary);
  file << "\x93NUMPY" << '\x01' << '\x00' << static_cast<char>(text.size() & 255) << static_cast<char>(text.size() >> 8);
  file << text;
  file.write(tensor.bytes.data(), static_cast<std::streamsize>(tensor.bytes.size()));
  file.flush();
  if (!file) throw std::runtime_error(path + " cannot be written");
}

inline std::vector<Example> read_examples(const std::string& folder) {
  std::ifstream list(folder + "/examples.txt");
  std::vector<Example> examples;
  for (std::string line; std::getline(list, line);) {
    std::istringstream fields(line);
    std::string kind, first, second;
    std::getline(fields, kind, '\t');
    std::getline(fields, first, '\t');
    std::getline(fields, second, '\t');
    if (kind == "example") {
      examples.push_back({first, {}});
    } else if (kind == "tensor" && !examples.empty()) {
      examples.back().tensors.push_back(read_npy(folder + "/" + second));
      examples.back().tensors.back().name = first;
    } else {
      throw std::runtime_error(folder + "/examples.txt has a line that is not known: " + line);
    }
  }
  if (examples.empty()) throw std::runtime_error(folder + " holds no examples");
  return examples;
}

inline void write_examples(const std::string& folder, const std::vector<Example>& examples) {
  std::ofstream list(folder + "/examples.txt");
  for (size_t number = 0; number < examples.size(); ++number) {
    list << "example\t" << examples[number].signature << "\n";
    for (size_t place = 0; place < examples[number].tensors.size(); ++place) {
      std::string file = std::to_string(number) + "-" + std::to_string(place) + ".npy";
      write_npy(folder + "/" + file, examples[number].tensors[place]);
      list << "tensor\t" << examples[number].tensors[place].name << "\t" << file << "\n";
    }
  }
  list.flush();
  if (!list) throw std::runtime_error(folder + " cannot be written");
}
