// Constants that the host needs too: stated once, here; the build copies them from the source into the
// manifest.
#pragma once

// The value must be an integer literal: the build finds these lines by their text.
#define BARACUDA_CONSTANT(name, value) [[maybe_unused]] constexpr int name = value
