// What the page passes around, for the checker of types: nothing of it is sent to a browser.

/** A line of the waterfall. */
interface Bar {
  kind: string; key: string; name: string; status: string; start: number; end: number | null; id?: string; note?: string;
  replayed?: number[]; earlier?: { start: number; end: number; status: string }[]; token?: number; tries?: number;
}
