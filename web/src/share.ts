// Links: a request in the fragment of the URL, which browsers never send to a server. Keys are not part of it.

import { NO_OPTIONS, type Options } from "./request";

export interface Shared {
  query: string;
  passages: string;
  options: Options;
  /** The URL of the service to compare with; empty if there was none. */
  other: string;
}

const PREFIX = "#r=";

/** The link to a request. */
export async function link(shared: Shared): Promise<string> {
  const bytes = new TextEncoder().encode(JSON.stringify(shared));
  const packed = await through(bytes, new CompressionStream("deflate-raw"));
  const text = btoa(Array.from(packed, (byte) => String.fromCharCode(byte)).join(""));
  const page = window.location.href.split("#", 1)[0]!;
  return page + PREFIX + text.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** The request of a fragment; null if the fragment has none. Throws an error that says what is wrong. */
export async function restore(fragment: string): Promise<Shared | null> {
  if (!fragment.startsWith(PREFIX)) return null;
  try {
    const text = atob(fragment.slice(PREFIX.length).replace(/-/g, "+").replace(/_/g, "/"));
    const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
    const found = JSON.parse(
      new TextDecoder().decode(await through(bytes, new DecompressionStream("deflate-raw"))),
    ) as Partial<Shared>;
    return {
      query: String(found.query ?? ""),
      passages: String(found.passages ?? ""),
      options: { ...NO_OPTIONS, ...found.options },
      other: String(found.other ?? ""),
    };
  } catch {
    throw new Error("The link is damaged: part of it may be missing.");
  }
}

async function through(bytes: Uint8Array<ArrayBuffer>, stream: GenericTransformStream): Promise<Uint8Array> {
  const piped = new Blob([bytes]).stream().pipeThrough(stream as ReadableWritablePair<Uint8Array, Uint8Array>);
  return new Uint8Array(await new Response(piped as ReadableStream<Uint8Array<ArrayBuffer>>).arrayBuffer());
}
