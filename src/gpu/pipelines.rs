//! Shaders made ready to run, each once.

use super::Lost;
use super::context::{Context, locked};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use wgpu::{
    BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType, BufferBindingType, ComputePipeline,
    ComputePipelineDescriptor, PipelineCompilationOptions, PipelineLayout, PipelineLayoutDescriptor,
    ShaderModuleDescriptor, ShaderSource, ShaderStages,
};

/// Bytes of a shader's text. A turn of the compiler's descent is for two bytes or more, and takes some hundred bytes of stack.
const LONGEST: usize = 1 << 19;
const STACK: usize = 1 << 27;

type Cell = Arc<OnceLock<Option<ComputePipeline>>>;

/// The one layout of bindings, and the pipelines made for it by their texts.
#[derive(Debug)]
pub(super) struct Pipelines {
    pub(super) bindings: BindGroupLayout,
    layout: PipelineLayout,
    made: Mutex<HashMap<Arc<str>, Cell>>,
}

impl Pipelines {
    pub(super) fn new(context: &Context) -> Result<Self, Lost> {
        context.checked("lay out bindings", || {
            let entry = |binding, read_only| BindGroupLayoutEntry {
                binding,
                visibility: ShaderStages::COMPUTE,
                ty: BindingType::Buffer {
                    ty: BufferBindingType::Storage { read_only },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let entries = [entry(0, true), entry(1, true), entry(2, false), entry(3, false)];
            let descriptor = BindGroupLayoutDescriptor { label: None, entries: &entries };
            let bindings = context.device.create_bind_group_layout(&descriptor);
            let layouts = [Some(&bindings)];
            let descriptor = PipelineLayoutDescriptor { label: None, bind_group_layouts: &layouts, immediate_size: 0 };
            let layout = context.device.create_pipeline_layout(&descriptor);
            Self { bindings, layout, made: Mutex::default() }
        })
    }

    /// The pipeline of a shader. Who asks while another makes it waits for that one.
    pub(super) fn get(&self, context: &Context, shader: &Arc<str>) -> Result<ComputePipeline, Lost> {
        let cell = Arc::clone(locked(&self.made).entry(Arc::clone(shader)).or_default());
        cell.get_or_init(|| self.make(context, shader).ok()).clone().ok_or(Lost)
    }

    /// In a thread of its own: compilers descend into long expressions, and a stack that ends ends the process.
    fn make(&self, context: &Context, shader: &str) -> Result<ComputePipeline, Lost> {
        if shader.len() > LONGEST {
            return Err(context.failure.set(format!("a shader of {} B is too long to be compiled", shader.len())));
        }
        thread::scope(|scope| {
            let compile = || self.compile(context, shader);
            let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, compile);
            let failed = |error| context.failure.set(format!("there is no thread to compile a shader in: {error}"));
            let panicked = |_| Err(context.failure.set("the compiler of shaders failed"));
            thread.map_err(failed)?.join().unwrap_or_else(panicked)
        })
    }

    fn compile(&self, context: &Context, shader: &str) -> Result<ComputePipeline, Lost> {
        context.checked("compile a shader", || {
            let descriptor = ShaderModuleDescriptor { label: None, source: ShaderSource::Wgsl(shader.into()) };
            let module = context.device.create_shader_module(descriptor);
            context.device.create_compute_pipeline(&ComputePipelineDescriptor {
                label: None,
                layout: Some(&self.layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: PipelineCompilationOptions::default(),
                cache: None,
            })
        })
    }
}
