// What of the bundle the page uses, for the checker of types.

/** What stands in a template: a value, or what is called with what happened, or with what there is to draw. */
type Hole = ((...happened: any[]) => any) | object | string | number | boolean | null | undefined;

export function html(strings: TemplateStringsArray, ...holes: Hole[]): any;
export function render(tree: any, parent: Element): void;
export function useState(initial: null): [any, (next: any) => void];
export function useState(initial: boolean): [boolean, (next: boolean | ((previous: boolean) => boolean)) => void];
export function useState<S>(initial: S | (() => S)): [S, (next: S | ((previous: S) => S)) => void];
export function useEffect(effect: () => any, inputs?: any[]): void;
export function useLayoutEffect(effect: () => any, inputs?: any[]): void;
export function useRef(initial: null): { current: any };
export function useRef<T>(initial: T): { current: T };
export function useMemo<T>(make: () => T, inputs?: any[]): T;
export function useErrorBoundary(told?: (error: any) => void): [any, () => void];
